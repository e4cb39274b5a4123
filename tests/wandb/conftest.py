"""A stand-in for W&B's server, and real runs that are shown there."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from tests.training.zygote import Zygote, free_port, open_zygote, rank_environment
from tests.wandb.server import KEY, WandbServer, open_server


@pytest.fixture
def server() -> Iterator[WandbServer]:
    with open_server() as server:
        yield server
    assert server.unknown == []
    assert len(server.keys - {""}) <= 1  # telemetry comes without


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("WANDB")]:
            patch.delenv(name)
        with open_zygote() as zygote:
            yield zygote


Fit = Callable[..., "tuple[list[int], str]"]


@pytest.fixture
def begin(zygote: Zygote, tmp_path: Path) -> Callable[..., Callable[[], tuple[list[int], str]]]:
    """Start `vitlight ARGS` with W&B at a server, on a number of ranks, and in an environment; the call of what it returns
    waits for the end and gives exit codes and output."""

    def begin(
        server: WandbServer, args: Sequence[str], num_ranks: int = 1, env: Mapping[str, str] | None = None
    ) -> Callable[[], tuple[list[int], str]]:
        port = free_port()
        own = {"WANDB_MODE": "online", "WANDB_BASE_URL": server.url, "WANDB_API_KEY": KEY, "HOME": str(tmp_path)}
        log = tmp_path / f"log-{port}"
        pids = []
        for rank in range(num_ranks):
            ranks = rank_environment(rank, num_ranks, port) if num_ranks > 1 else {}
            pids.append(zygote.start([*args, "--run.wandb=true"], log, own | ranks | dict(env or {})))
        return lambda: ([zygote.exit_code(pid) for pid in pids], log.read_text())

    return begin


@pytest.fixture
def fit(begin: Callable[..., Callable[[], tuple[list[int], str]]]) -> Fit:
    """As `begin`, and wait."""
    return lambda *args, **keys: begin(*args, **keys)()
