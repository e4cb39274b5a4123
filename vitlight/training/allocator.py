"""How a process that trains on the CPU gives memory back: not at all."""

import ctypes
import sys

__all__ = ["keep_freed_memory"]

# mallopt's parameters, from glibc's malloc.h, and values: never map a block of its own, never shrink the heap.
_M_MMAP_MAX, _NONE = -4, 0
_M_TRIM_THRESHOLD, _NEVER = -1, -1


def keep_freed_memory() -> bool:
    """Let glibc's malloc keep freed memory for the next request, for the rest of the process; False where it can't.

    By default it maps each large block anew, and the kernel hands the pages over one fault at a time, zeroed: every
    activation of every training step pays for it (docs/benchmarks/train_step.md has the share). The process then stays as
    large as it ever was.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(
        mallopt(parameter, value) == 1 for parameter, value in ((_M_MMAP_MAX, _NONE), (_M_TRIM_THRESHOLD, _NEVER))
    )
