"""A stand-in for a cell: `python -m tests.sweep.cell CODE ARGS` runs CODE. Its `preload` starts a thread, or fails,
where asked to."""

import os
import sys
import threading

ASKED = []  # what of CUDA anything has asked for, in the process that real runs are forked from


def preload():
    if "PRELOAD_FAILS" in os.environ:
        raise RuntimeError("nothing can be imported here")
    if "PRELOAD_STARTS_A_THREAD" in os.environ:
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    if "PRELOAD_RUNS" in os.environ:
        _preload_runs()


def _preload_runs():
    import torch

    from vitlight.training.preload import preload

    for name in ("is_available", "device_count", "_lazy_init", "current_device"):
        setattr(torch.cuda, name, _noted(name, getattr(torch.cuda, name)))
    preload()


def _noted(name, function):
    def note(*args):
        ASKED.append(name)
        return function(*args)

    return note


def begin():
    if "PRELOAD_RUNS" in os.environ:
        from vitlight.training.preload import begin

        begin()


if __name__ == "__main__":
    exec(sys.argv.pop(1))
