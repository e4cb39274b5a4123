"""The cluster that the tests of a module share."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

from tests.cluster.slurm import PROGRAMS, start_slurm
from tests.requirements import require


@pytest.fixture(scope="module")
def slurm():
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    missing = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    require(not missing, f"Slurm and munge ({', '.join(missing)})")
    require(os.getuid() == 0, "the rights to run slurmd (root)")
    # Slurm's sockets need a short path.
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder, start_slurm(Path(folder)) as slurm:
        yield slurm
