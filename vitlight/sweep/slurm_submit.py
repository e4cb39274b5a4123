"""Cells become Slurm jobs through submitit: one array for all cells of a shape."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from vitlight.errors import InputError
from vitlight.sweep.job_records import JobRecord, job_path, remove_job, write_job
from vitlight.sweep.plan import PlannedCell, sweep_directory
from vitlight.sweep.slurm_cell import SlurmCell
from vitlight.sweep.slurm_queue import SlurmQueue
from vitlight.sweep.slurm_shape import Shape, cell_arguments, cell_shape
from vitlight.sweep.status import claim_path, log_path

__all__ = ["SlurmOptions", "SlurmSubmitter"]

MAX_ARRAY = 1000  # Slurm's default MaxArraySize is 1001
_SIGNAL = "USR1@120"  # two minutes before the time limit, to the ranks


@dataclass(frozen=True)
class SlurmOptions:
    """What `sweep run --slurm` was told. `time`, `mem`: as sbatch takes them; None leaves them to the partition."""

    partition: str | None = None
    account: str | None = None
    time: str | None = None
    nodes_per_cell: int | None = None
    gpus_per_node: int | None = None
    cpus_per_task: int | None = None
    mem: str | None = None
    max_parallel: int | None = None
    setup: tuple[str, ...] = ()
    sbatch: tuple[str, ...] = ()  # NAME=VALUE

    def __post_init__(self) -> None:
        """InputError: a count < 1, or `sbatch` without a name."""
        for name in ("nodes_per_cell", "gpus_per_node", "cpus_per_task", "max_parallel"):
            count = getattr(self, name)
            if count is not None and count < 1:
                raise InputError(f"--{name.replace('_', '-')} is {count}; it must be 1 or more")
        for option in self.sbatch:
            if not option.partition("=")[0].strip("-"):
                raise InputError(f"--sbatch {option!r} is no option of sbatch; write NAME=VALUE, like qos=high")

    @property
    def asks_for_gpus(self) -> bool:
        return self.gpus_per_node is not None or any("gpu" in option or "gres" in option for option in self.sbatch)

    @property
    def additional(self) -> dict[str, str | bool]:
        """Options that submitit hands to sbatch as they are."""
        pairs = (option.lstrip("-").partition("=") for option in self.sbatch)
        options: dict[str, str | bool] = {"requeue": True, "signal": _SIGNAL}
        options |= {} if self.mem is None else {"mem": self.mem}
        for name, equals, value in pairs:
            options[name] = value if equals else True
        return options


class SlurmSubmitter:
    """Writes job scripts for a sweep, and hands them to sbatch."""

    def __init__(
        self,
        planned: Sequence[PlannedCell],
        options: SlurmOptions,
        queue: SlurmQueue,
        command: Sequence[str] = (sys.executable, "-m", "vitlight"),
    ) -> None:
        """InputError: submitit is missing, or a cell's own settings contradict the options."""
        try:
            import submitit  # noqa: F401
        except ModuleNotFoundError:
            raise InputError("--slurm needs submitit; pip install 'vitlight[slurm]'") from None
        self._options, self._queue, self._command = options, queue, tuple(command)
        self._directory = sweep_directory(planned).absolute()
        self.max_parallel = options.max_parallel
        self.shapes = {
            item.run.run_id: cell_shape(item, options.nodes_per_cell, options.gpus_per_node) for item in planned
        }

    def arrays(self, cells: Sequence[PlannedCell]) -> list[list[PlannedCell]]:
        """The cells by shape, each in the order of `cells`, at most MAX_ARRAY together."""
        shapes = dict.fromkeys(self.shapes[item.run.run_id] for item in cells)
        groups = [[item for item in cells if self.shapes[item.run.run_id] == shape] for shape in shapes]
        return [group[first : first + MAX_ARRAY] for group in groups for first in range(0, len(group), MAX_ARRAY)]

    def script(self, cells: Sequence[PlannedCell]) -> str:
        """The script that `submit` would hand to sbatch for one array, but for the token in its comment."""
        executor = self._executor("TOKEN", self.shapes[cells[0].run.run_id])
        if len(cells) > 1:
            executor.parameters["map_count"] = len(cells)
        return str(executor._make_submission_file_text(executor._submitit_command_str, "dry-run"))

    def submit(self, cells: Sequence[PlannedCell]) -> list[str]:
        """Submit one array, the claims of whose cells the caller holds; their job numbers.

        The cells' records are written first: should this process be killed in between, the jobs are found by the token
        that they carry as their comment. InputError: sbatch refuses; nothing was submitted then.
        """
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        cluster = self._queue.cluster
        if cluster is None:
            raise InputError(f"Slurm can't be reached ({self._queue.trouble}); run this where sbatch works")
        token = f"vitlight-{uuid.uuid4().hex}"
        now = datetime.now(UTC).isoformat(timespec="seconds")
        records = [
            JobRecord(token, index if len(cells) > 1 else None, cluster, self._queue.user, now)
            for index in range(len(cells))
        ]
        for item, record in zip(cells, records, strict=True):
            write_job(job_path(item), record)
        try:
            executor = self._executor(token, self.shapes[cells[0].run.run_id])
            with executor.batch():
                jobs = [executor.submit(self.task(item, token)) for item in cells]
        except (FailedJobError, FailedSubmissionError, RuntimeError) as error:
            for item in cells:
                remove_job(job_path(item))
            raise InputError(f"sbatch refuses: {' '.join(str(error).split())[-300:]}") from None
        self._queue.forget()
        numbers = [str(job.job_id) for job in jobs]
        for item, record, number in zip(cells, records, numbers, strict=True):
            write_job(job_path(item), replace(record, job=number))
        return numbers

    def is_complete(self, job: str) -> bool:
        """Whether a submission got as far as to lay down what the job is to run."""
        from submitit.core.utils import JobPaths

        return bool(JobPaths(self._directory / "slurm", job_id=job).submitted_pickle.exists())

    def task(self, planned: PlannedCell, token: str) -> SlurmCell:
        """What the cell's job runs."""
        shape = self.shapes[planned.run.run_id]
        return SlurmCell(
            token=token,
            command=(*self._command, *cell_arguments(planned, shape)),
            num_nodes=shape.num_nodes,
            ranks_per_node=shape.ranks_per_node,
            cpus_per_task=self._options.cpus_per_task,
            run_dir=planned.run.run_dir.absolute(),
            claim=claim_path(planned).absolute(),
            job=job_path(planned).absolute(),
            log=log_path(planned).absolute(),
        )

    def _executor(self, token: str, shape: Shape) -> Any:
        from submitit import SlurmExecutor

        class Executor(SlurmExecutor):
            """Shows scripts on a machine without Slurm, too."""

            @classmethod
            def affinity(cls) -> int:
                return 1

        options = self._options
        executor = Executor(self._directory / "slurm")
        executor.update_parameters(
            job_name=f"vitlight-{self._directory.name}",
            comment=token,
            partition=options.partition,
            account=options.account,
            time=options.time,
            nodes=shape.num_nodes,
            ntasks_per_node=shape.ranks_per_node,
            gpus_per_node=options.gpus_per_node,
            cpus_per_task=options.cpus_per_task,
            # Bash would die of them and take the job's first process along; the ranks answer them.
            setup=["trap : TERM USR1", *options.setup],
            array_parallelism=options.max_parallel or MAX_ARRAY,
            wckey=None,
            stderr_to_stdout=True,
            use_srun=False,
            additional_parameters=options.additional,
        )
        return executor
