"""Ranks that don't see the same files yet begin at the same checkpoint."""

import json
import os
import subprocess
import sys

from tests.conftest import ROOT
from tests.training.zygote import free_port
from vitlight.training.checkpoint import checkpoint_path, commit_checkpoint

RANK = """
import json, sys
from pathlib import Path
import lightning.pytorch as pl
from vitlight.training.start import agree_on_start
trainer = pl.Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_checkpointing=False)
starts = [agree_on_start(trainer, Path(folder)) for folder in sys.argv[1:]]
print(json.dumps([start and [start[0], str(start[1])] for start in starts]))
"""


def test_rank_0_decides(tmp_path):
    """Two processes as torchrun starts them, each with a folder of its own; then with one where there is nothing."""
    for rank, steps in enumerate(((5, 10), (5, 10, 15))):
        folder = tmp_path / str(rank)
        folder.mkdir()
        for step in steps:
            beside = folder / "beside"
            beside.write_text("state")
            commit_checkpoint(beside, checkpoint_path(folder, step))
    (tmp_path / "empty").mkdir()
    world = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    world |= {"GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "test", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    ranks = []
    for rank in range(2):
        folders = [str(tmp_path / str(rank)), str(tmp_path / ("empty" if rank == 0 else "1"))]
        environment = {**os.environ, **world, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        command = [sys.executable, "-W", "ignore", "-c", RANK, *folders]
        ranks.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT))
    answers = [json.loads(process.communicate(timeout=120)[0].splitlines()[-1]) for process in ranks]
    assert answers[0] == answers[1] == [[10, str(tmp_path / "0" / "step-000000010.ckpt")], None]
