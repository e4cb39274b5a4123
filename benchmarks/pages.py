"""Pages of docs/ that hold what a benchmark measured, between two marks, and on which processor."""

import platform
from pathlib import Path

__all__ = ["cpu_name", "write_measured"]


def cpu_name() -> str:
    """As the system calls it; where it doesn't say, the architecture."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def write_measured(page: Path, text: str, name: str = "measured") -> None:
    """Replace what stands between the marks `name` and `end of name` of a page, and nothing else."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    content = page.read_text()
    if begin not in content or end not in content:
        raise SystemExit(f"{page} lacks the marks {begin} and {end}")
    head, _, rest = content.partition(begin)
    page.write_text(f"{head}{begin}\n\n{text.strip()}\n\n{end}{rest.partition(end)[2]}")
