"""How many nodes and processes a cell gets on a cluster: its own settings and the flags, which must agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vitlight.errors import InputError
from vitlight.sweep.plan import PlannedCell

__all__ = ["Shape", "cell_arguments", "cell_shape"]

_NODES, _DEVICES = "--trainer.num_nodes", "--trainer.devices"


@dataclass(frozen=True, order=True)
class Shape:
    """What a job asks for. Cells of one shape make one array."""

    num_nodes: int
    ranks_per_node: int

    def __str__(self) -> str:
        return f"{self.num_nodes} x {self.ranks_per_node}"


def cell_shape(planned: PlannedCell, nodes_per_cell: int | None, gpus_per_node: int | None) -> Shape:
    """The flags decide where they are given, else the cell's trainer.num_nodes and trainer.devices ("auto" is one process
    a node). InputError: the cell's own command line says something else than a flag."""
    settings = planned.run.settings
    num_nodes = int(settings.trainer.num_nodes or 1) if settings is not None else 1
    ranks = _num_ranks(settings.trainer.devices) if settings is not None else None
    cell = f"cell {planned.cell.index} ({planned.cell.label})"
    if nodes_per_cell not in (None, num_nodes) and _is_given(planned.args, _NODES):
        raise InputError(
            f"{cell} has trainer.num_nodes={num_nodes}, and --nodes-per-cell is {nodes_per_cell}; leave the flag out, and "
            "each cell gets the nodes that it names"
        )
    if ranks is not None and gpus_per_node not in (None, ranks) and _is_given(planned.args, _DEVICES):
        raise InputError(
            f"{cell} has trainer.devices={settings and settings.trainer.devices}, and --gpus-per-node is {gpus_per_node}; "
            "a process drives one GPU: make them equal, or leave one of them out"
        )
    return Shape(nodes_per_cell or num_nodes, gpus_per_node or ranks or 1)


def cell_arguments(planned: PlannedCell, shape: Shape) -> tuple[str, ...]:
    """The cell's arguments, with the shape spelled out."""
    return (*planned.args, f"{_NODES}={shape.num_nodes}", f"{_DEVICES}={shape.ranks_per_node}")


def _is_given(args: Sequence[str], flag: str) -> bool:
    """Among the cell's own arguments: by its name, or in a mapping of several settings."""
    name = f"'{flag.rpartition('.')[2]}'"
    mappings = ("--config={", "--trainer={")
    return any(arg == flag or arg.startswith(f"{flag}=") or (arg.startswith(mappings) and name in arg) for arg in args)


def _num_ranks(devices: Any) -> int | None:
    """Processes a node of Lightning's `trainer.devices`; None where it leaves them open ("auto", -1)."""
    if devices in ("auto", "-1", -1, None):
        return None
    if isinstance(devices, str):
        return devices.count(",") + 1 if "," in devices else int(devices)
    return devices if isinstance(devices, int) else len(devices)
