"""A real Slurm on this machine, for one test module: slurmctld, munge and two slurmds on virtual nodes, without systemd."""

import os
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path

__all__ = ["PROGRAMS", "Slurm", "start_slurm"]

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "sinfo", "scancel")
NODES = ("node1", "node2")

_CONF = """
ClusterName=vitlight
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={root}/munge/socket
CredType=cred/munge
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SlurmctldPidFile={root}/pid/slurmctld
SlurmdPidFile={root}/pid/slurmd.%n
SlurmctldLogFile={root}/log/slurmctld
SlurmdLogFile={root}/log/slurmd.%n
SwitchType=switch/none
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
MinJobAge=3600
KillWait=20
OverTimeLimit=0
SlurmdTimeout=300
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4 RealMemory=1000
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=4 RealMemory=1000
PartitionName=low Nodes=node1,node2 Default=YES MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=high Nodes=node1,node2 MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
"""


class Slurm:
    """A running cluster. Environment: what its commands need."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.env = {**os.environ, "SLURM_CONF": str(root / "slurm.conf")}

    def command(self, *words: str) -> str:
        """Standard output of one of Slurm's commands."""
        done = subprocess.run(words, env=self.env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{shlex.join(words)}: {done.stderr}"
        return done.stdout.strip()

    def submit(
        self, script: Path, *options: str, args: Sequence[str] = (), env: Mapping[str, str] | None = None
    ) -> int:
        """The number of the job that runs `script ARGS`."""
        words = ["sbatch", "--parsable", *options, str(script), *args]
        done = subprocess.run(words, env={**self.env, **(env or {})}, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return int(done.stdout.split(";")[0])

    def job(self, job: int) -> Mapping[str, str]:
        """What `scontrol show job` says."""
        words = self.command("scontrol", "--oneliner", "show", "job", str(job)).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def state(self, job: int) -> str:
        return self.job(job)["JobState"]

    def wait_for(self, condition: Callable[[], bool], what: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
            time.sleep(0.1)

    def wait_until_ended(self, job: int, seconds: float) -> str:
        """The job's last state. A requeued job waits a few seconds, instead of two minutes; not less, since slurmd refuses
        a start in the second in which it revoked the job's last credential."""

        def has_ended() -> bool:
            now = self.job(job)
            waits = now["JobState"] == "PENDING" and now.get("Reason") == "BeginTime"
            if waits and datetime.now() > datetime.fromisoformat(now["SubmitTime"]) + timedelta(seconds=4):
                words = ["scontrol", "update", f"jobid={job}", "StartTime=now"]
                subprocess.run(words, env=self.env, capture_output=True, timeout=60)
            return now["JobState"] not in (
                "PENDING",
                "RUNNING",
                "COMPLETING",
                "CONFIGURING",
                "SUSPENDED",
                "PREEMPTED",
                "REQUEUED",
            )

        self.wait_for(has_ended, f"job {job} to end", seconds)
        return self.state(job)

    def start_node(self, node: str) -> None:
        self.start("slurmd", "-f", self.env["SLURM_CONF"], "-N", node)

    def start(self, *words: str) -> None:
        """Start a daemon, which puts itself into the background."""
        path = shutil.which(words[0], path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
        assert path is not None
        # With an output of its own: a pipe would be held open for as long as the daemon lives.
        with (self.root / "log" / "start").open("a") as log:
            subprocess.run([path, *words[1:]], env=self.env, stdout=log, stderr=log, timeout=60, check=True)

    def lose_node(self, node: str) -> None:
        """Kill its slurmd and all ranks on it, and say what slurmctld would find out by itself in some minutes."""
        daemon = self.root / "pid" / f"slurmd.{node}"
        pid = int(daemon.read_text())
        daemon.unlink()
        for each in (pid, *_processes_with(f"SLURMD_NODENAME={node}".encode(), self._mark)):
            with suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)
        self.command("scontrol", "update", f"nodename={node}", "state=down", "reason=lost")

    def kill_processes(self, job: int | str) -> None:
        """All that the job has started, as when its node is out of memory."""
        for pid in _processes_with(f"SLURM_JOB_ID={job}".encode(), self._mark):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    @property
    def _mark(self) -> bytes:
        """In the environment of all that this cluster has started."""
        return f"SLURM_CONF={self.env['SLURM_CONF']}".encode()

    def stop(self) -> None:
        """End the daemons and all that they have started."""
        deadline = time.monotonic() + 30
        for path in (self.root / "pid").iterdir():
            with suppress(ProcessLookupError):
                os.kill(int(path.read_text()), signal.SIGKILL)
        while found := _processes_with(self._mark):
            assert time.monotonic() < deadline, f"processes {found} don't end"
            for pid in found:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.05)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as opened:
        sockets = [opened.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@contextmanager
def start_slurm(root: Path) -> Iterator[Slurm]:
    """The cluster with its state under `root`, both nodes idle; stopped at the end, and every job with it."""
    for name in ("state", "log", "pid", "munge", *(f"spool/{node}" for node in NODES)):
        (root / name).mkdir(parents=True)
    for folder in (root, *root.parents):
        if folder.stat().st_uid == os.getuid() and folder.stat().st_mode & 0o022 and not folder.stat().st_mode & 0o1000:
            folder.chmod(0o755)  # munge refuses folders that others can write
    (root / "munge").chmod(0o700)
    key = root / "munge" / "key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    (root / "munge").chmod(0o711)
    host, user = socket.gethostname().split(".")[0], subprocess.check_output(["id", "-un"], text=True).strip()
    (root / "slurm.conf").write_text(_CONF.format(host=host, user=user, root=root, ports=_free_ports(3)))
    (root / "cgroup.conf").write_text("CgroupAutomount=no\n")
    slurm = Slurm(root)
    try:
        slurm.start(
            *(
                "munged",
                "--force",
                f"--key-file={key}",
                f"--socket={root}/munge/socket",
                f"--pid-file={root}/pid/munged",
            ),
            *(f"--log-file={root}/log/munged", f"--seed-file={root}/munge/seed"),
        )
        slurm.start("slurmctld", "-f", slurm.env["SLURM_CONF"], "-c")
        for node in NODES:
            slurm.start_node(node)
        slurm.wait_for(
            lambda: slurm.command("sinfo", "-h", "-p", "low", "-t", "idle", "-o", "%D") == "2", "both nodes", 60
        )
        yield slurm
    finally:
        slurm.stop()


def _processes_with(*marks: bytes) -> list[int]:
    """Those that have all these variables in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if set(marks) <= set(path.read_bytes().split(b"\0")):
                found.append(int(path.parent.name))
    return found
