"""Runs that something stops at a chosen moment, and the run that nothing disturbs."""

import json
from pathlib import Path

from tests.conftest import fit_args as fit_args_fixture
from tests.training.zygote import Zygote
from vitlight.training.record import RunDirectory

__all__ = ["args_for", "at_moment", "run_in", "whole_run"]


def args_for(tiny_shards: Path, root: Path) -> list[str]:
    """12 steps, logged after every second one, evaluated after 4, 8 and 12, in batches of 8: a signal in an evaluation is
    noted before it ends."""
    return [*fit_args_fixture.__wrapped__(tiny_shards, root), "--data.eval_batch_size=8"]


def at_moment(callback: str, root: Path, **values: object) -> list[str]:
    """The setting that has `tests.training.CALLBACK` act once, where the values say."""
    values = {"once": str(root / "once"), **values}
    return [f"--trainer.callbacks={json.dumps([{'class_path': f'tests.training.{callback}', 'init_args': values}])}"]


def run_in(root: Path) -> RunDirectory:
    (path,) = (root / "runs" / "tiny").iterdir()
    return RunDirectory(path)


def whole_run(zygote: Zygote, args: list[str], root: Path) -> RunDirectory:
    """A run below `root` that nothing disturbs, of one process."""
    assert zygote.run(args, root / "log") == 0, (root / "log").read_text()
    return run_in(root)
