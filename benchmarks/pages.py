"""Pages of docs/ that hold what a benchmark measured, between two marks."""

from pathlib import Path

__all__ = ["write_measured"]


def write_measured(page: Path, text: str, name: str = "measured") -> None:
    """Replace what stands between the marks `name` and `end of name` of a page, and nothing else."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    content = page.read_text()
    if begin not in content or end not in content:
        raise SystemExit(f"{page} lacks the marks {begin} and {end}")
    head, _, rest = content.partition(begin)
    page.write_text(f"{head}{begin}\n\n{text.strip()}\n\n{end}{rest.partition(end)[2]}")
