"""vitlight: model-size x dataset-size sweeps of ViT, CoAtNet and CNNs, with exact accounting.

The public names are imported when they are first used, so that `import vitlight` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitlight.analysis.laws import fit_law
    from vitlight.analysis.report import write_report
    from vitlight.analysis.runs import load_runs
    from vitlight.analysis.tables import load_table
    from vitlight.cost import count_params, forward_macs, train_flops
    from vitlight.data.datamodule import ShardedImages
    from vitlight.data.index import load_index
    from vitlight.data.shards import write_shards
    from vitlight.data.synthetic import SyntheticImages
    from vitlight.errors import InputError
    from vitlight.models import build_model, list_archs
    from vitlight.training.classifier import ImageClassifier
    from vitlight.training.trained import load_trained

__version__ = "0.1.0"

__all__ = [
    "ImageClassifier",
    "InputError",
    "ShardedImages",
    "SyntheticImages",
    "__version__",
    "build_model",
    "count_params",
    "fit_law",
    "forward_macs",
    "list_archs",
    "load_index",
    "load_runs",
    "load_table",
    "load_trained",
    "train_flops",
    "write_report",
    "write_shards",
]

_HOMES = {
    "ImageClassifier": "vitlight.training.classifier",
    "InputError": "vitlight.errors",
    "ShardedImages": "vitlight.data.datamodule",
    "SyntheticImages": "vitlight.data.synthetic",
    "build_model": "vitlight.models",
    "count_params": "vitlight.cost",
    "fit_law": "vitlight.analysis.laws",
    "forward_macs": "vitlight.cost",
    "list_archs": "vitlight.models",
    "load_index": "vitlight.data.index",
    "load_runs": "vitlight.analysis.runs",
    "load_table": "vitlight.analysis.tables",
    "load_trained": "vitlight.training.trained",
    "train_flops": "vitlight.cost",
    "write_report": "vitlight.analysis.report",
    "write_shards": "vitlight.data.shards",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vitlight' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
