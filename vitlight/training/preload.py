"""Everything that a run imports, sooner or later, for a process that runs are forked from."""

import contextlib
import importlib

from vitlight.data.worker_server import fork_worker_server
from vitlight.training.experiment import make_parsers
from vitlight.training.meta_network import network_on_meta
from vitlight.training.record import code_commit
from vitlight.training.spare import fork_spare

__all__ = ["begin", "preload"]

# What runs and their helpers come to, and no import of the modules above brings.
_LATER = ("vitlight.training.run", "lightning.pytorch.strategies", "torch._dynamo", "wandb.sdk.launch", "requests")


def preload() -> None:
    """Import it, and make what is the same for every run. Starts no thread, and asks for no device."""
    for name in _LATER:
        with contextlib.suppress(ImportError):  # of another version: it takes a run longer, then
            importlib.import_module(name)
    code_commit()  # of the code that was imported, whatever becomes of the files before a run ends
    make_parsers()
    network_on_meta("vit_nano1", 10, 28, 3, None)  # for what counting imports


def begin() -> None:
    """In each process that is forked, before its run, while it has a single thread."""
    fork_worker_server()
    fork_spare()
