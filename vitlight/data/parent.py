"""Worker processes end with the one that uses them, however that one ends."""

import multiprocessing
import os
import threading

__all__ = ["end_with_parent"]


def end_with_parent() -> None:
    """Called in a worker at its start.

    If its parent is killed, nothing else tells it: siblings hold the other ends of all pipes, and what the system calls the
    parent of workers that a server forks is that server, which lives as long as they do.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()
