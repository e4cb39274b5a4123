"""Which module may import which: `models, cost, data -> training -> sweep -> cli`, and `analysis` on the side."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import vitlight

PACKAGE = Path(vitlight.__file__).parent
BASE = {"errors", "json_lines", "messages"}  # which every part may import
# Each part, and the other parts it may import. `data` stands below `training` and beside `models`.
PARTS = {
    "models": set(),
    "cost": {"models"},
    "data": set(),
    "evaluation": {"models", "data"},
    "training": {"models", "cost", "data", "evaluation", "analysis.insight"},
    "sweep": {"models", "cost", "data", "evaluation", "training"},
    "analysis": {"models"},
    "analysis.insight": {"models", "analysis"},  # runs networks, and knows nothing of runs
    "prediction": {"models", "data", "training"},
    "commands": {
        *("models", "cost", "data", "evaluation", "prediction", "training", "sweep"),
        *("analysis", "analysis.insight"),
    },
    "cli": {"models", "cost", "data", "training", "sweep", "analysis", "commands"},
    "__main__": {"cli"},
    "__init__": {"models", "cost", "data", "training", "sweep", "analysis"},
}
ALLOWED = {name: set() for name in BASE} | {name: allowed | BASE for name, allowed in PARTS.items()}
# Third-party packages that a part must do without, so that it can be used without them.
FORBIDDEN = {
    "models": {"lightning", "wandb", "webdataset", "fvcore", "pandas"},
    "cost": {"lightning", "wandb", "webdataset", "pandas"},
    "analysis": {"lightning", "wandb", "webdataset"},
    "analysis.insight": {"lightning", "wandb", "webdataset"},
    "sweep": {"lightning", "wandb", "webdataset"},
}


def part_of(path: Path) -> str:
    return part_named(".".join(path.relative_to(PACKAGE).with_suffix("").parts))


def part_named(module: str) -> str:
    """The first word of a module's name, or the first two where these are a part of their own."""
    first_two = ".".join(module.split(".")[:2])
    return first_two if first_two in ALLOWED else module.split(".")[0]


def imported(path: Path) -> set[str]:
    """Full names of all modules imported anywhere in a file, type-checking blocks included."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


MODULES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path):
    part = part_of(path)
    names = imported(path)
    modules = {name.removeprefix("vitlight.") for name in names if name.startswith("vitlight.")}
    ours = {part_named(module) for module in modules} - {"__version__"}
    assert ours <= ALLOWED[part] | {part}
    theirs = {name.split(".")[0] for name in names}
    assert not theirs & FORBIDDEN.get(part, set())
    assert "torchvision" not in theirs


def test_every_part_is_known():
    assert {part_of(path) for path in MODULES} <= set(ALLOWED)
    assert not (PACKAGE / "utils.py").exists()


LIGHT = (
    ["--help"],
    ["sweep", "--help"],
    ["data", "--help"],
    ["report", "--help"],
    ["law", "--help"],
    ["table", "--help"],
    ["wandb", "--help"],
    ["transfer", "--help"],
    ["inspect", "--help"],
    ["probe", "--help"],
)


@pytest.mark.parametrize("command", LIGHT)
def test_light_commands_import_nothing_heavy(command):
    code = (
        "import sys; from vitlight.cli import main\n"
        f"try: main({command!r})\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "print(sorted({'torch', 'lightning', 'pandas', 'numpy', 'wandb', 'rich', 'yaml'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
