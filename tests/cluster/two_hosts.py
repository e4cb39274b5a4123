"""Two hosts on one machine: network namespaces joined by a cable that can be cut, with torchrun on each."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.conftest import ROOT

__all__ = ["Host", "TwoHosts", "join_two_hosts", "missing_for_two_hosts"]

_RENDEZVOUS_PORT = 29400


def missing_for_two_hosts() -> str | None:
    """What this machine lacks for them, or None."""
    if shutil.which("ip") is None:
        return "iproute2 (ip)"
    name = f"vlprobe{os.getpid()}"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True).returncode:
        return "the rights to make network namespaces (root)"
    _ip("netns", "del", name)
    return None


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


class Host:
    """A network namespace with one interface."""

    def __init__(self, letter: str, address: str) -> None:
        self.name, self.interface, self.address = f"vl{letter}{os.getpid()}", f"vl{letter}{os.getpid()}", address
        _ip("netns", "add", self.name)

    def attach(self) -> None:
        _ip("-n", self.name, "addr", "add", f"{self.address}/24", "dev", self.interface)
        _ip("-n", self.name, "link", "set", "lo", "up")
        self.connect(True)

    def connect(self, up: bool) -> None:
        """Plug the cable in, or pull it out: what is sent is then lost without a word."""
        _ip("-n", self.name, "link", "set", self.interface, "up" if up else "down")

    def torchrun(self, arguments: Sequence[str], log: Path, *, rendezvous: "Host", max_restarts: int = 3) -> int:
        """Start an agent for one or two nodes of one process each; returns its process id. Its output goes to `log`."""
        agent = [
            *(sys.executable, "-m", "torch.distributed.run", "--nnodes=1:2", "--nproc-per-node=1"),
            *("--rdzv-backend=c10d", "--rdzv-id=test", f"--rdzv-endpoint={rendezvous.address}:{_RENDEZVOUS_PORT}"),
            f"--rdzv-conf=is_host={int(self is rendezvous)},last_call_timeout=5,join_timeout=120",
            *(f"--local-addr={self.address}", f"--max-restarts={max_restarts}", "--monitor-interval=0.2"),
            *("-m", "vitlight", *arguments),
        ]
        env = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "GLOO_SOCKET_IFNAME": self.interface,
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        }
        with log.open("a") as output:
            started = subprocess.Popen(
                ["ip", "netns", "exec", self.name, *agent],
                stdout=output,
                stderr=output,
                env=env,
                start_new_session=True,
            )
        self.agent = started
        return started.pid

    def processes(self) -> list[int]:
        found = subprocess.run(["ip", "netns", "pids", self.name], check=True, capture_output=True, text=True)
        return [int(pid) for pid in found.stdout.split()]

    def kill_all(self) -> None:
        """As when the power goes: nothing on this host says a last word."""
        for _ in range(2):  # the agent may have started another meanwhile
            for pid in self.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        if hasattr(self, "agent"):
            self.agent.wait(30)


class TwoHosts:
    def __init__(self) -> None:
        self.a, self.b = Host("a", "10.77.0.1"), Host("b", "10.77.0.2")
        _ip(
            *("link", "add", self.a.interface, "netns", self.a.name, "type", "veth"),
            *("peer", "name", self.b.interface, "netns", self.b.name),
        )
        self.a.attach()
        self.b.attach()


@contextlib.contextmanager
def join_two_hosts() -> Iterator[TwoHosts]:
    hosts = TwoHosts()
    try:
        yield hosts
    finally:
        for host in (hosts.a, hosts.b):
            host.kill_all()
            _ip("netns", "del", host.name)
