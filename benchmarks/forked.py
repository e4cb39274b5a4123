"""Ranks of `vitlight fit` forked from a process that has imported all they need, which takes longer than a small run."""

import importlib
import os
import socket
import sys

__all__ = ["become_rank", "free_port", "preload", "rank_environment"]


def preload() -> None:
    """Import all that a run needs, and make the parsers, before the first fork. Starts no thread."""
    import torch

    torch.set_num_threads(1)
    for name in ("vitlight.__main__", "vitlight.training.run", "lightning.pytorch.strategies", "torch._dynamo"):
        importlib.import_module(name)
    from vitlight.training.experiment import _parsers

    _parsers()


def rank_environment(rank: int, num_ranks: int, port: int) -> dict[str, str]:
    """What torchrun sets on a single node; nothing for a single rank."""
    if num_ranks == 1:
        return {}
    return {
        **dict.fromkeys(("RANK", "LOCAL_RANK"), str(rank)),
        **dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), str(num_ranks)),
        **{"GROUP_RANK": "0", "GROUP_WORLD_SIZE": "1", "TORCHELASTIC_RUN_ID": "forked"},
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"},
    }


def become_rank(rank: int, environment: dict[str, str]) -> None:
    """In the forked process, before anything of a run is made."""
    os.environ.update(environment)
    # Loader workers import the main module; it must be that of `python -m vitlight`.
    sys.modules["__main__"] = importlib.import_module("vitlight.__main__")
    from lightning_utilities.core.rank_zero import rank_zero_only

    rank_zero_only.rank = rank  # was read from the environment when lightning was imported


def free_port() -> int:
    """A TCP port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
