"""W&B's search engine, for tests that compare with it, and sweep files that it searches."""

import importlib
import importlib.util
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from tests.requirements import require
from tests.sweep.conftest import COMMAND

__all__ = ["engine", "require_engine", "write_search"]


def require_engine() -> None:
    require(importlib.util.find_spec("sweeps") is not None, "W&B's search engine: pip install 'vitlight[search]'")


def engine(module: str) -> ModuleType:
    require_engine()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it was written for pydantic 1
        return importlib.import_module(f"sweeps.{module}")


def write_search(path: Path, parameters: dict[str, Any], **keys: Any) -> Path:
    """A sweep file with these parameters in W&B's words, named demo."""
    path.write_text(yaml.safe_dump({"name": "demo", "command": COMMAND, "parameters": parameters, **keys}))
    return path
