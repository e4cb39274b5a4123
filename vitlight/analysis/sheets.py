"""A CSV file as text: a header and rows, before anything is known of what they mean."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vitlight.errors import InputError

__all__ = ["Sheet", "read_sheet"]

_NUM_NAMED = 20  # columns that a message lists


@dataclass(frozen=True)
class Sheet:
    """`label` is what messages call it; `rows` have a text for each name of `header`, and `places` say where each stands."""

    label: str
    header: tuple[str, ...]
    rows: Sequence[dict[str, str]]
    places: Sequence[str]

    def columns_named(self) -> str:
        """The header in a message: its first names, and how many more."""
        more = len(self.header) - _NUM_NAMED
        return ", ".join(self.header[:_NUM_NAMED]) + (f" and {more} more" if more > 0 else "")


def read_sheet(path: Path, label: str | None = None) -> Sheet:
    """The rows of a file in UTF-8, with or without a byte order mark, its cells set apart by commas, semicolons or tabs.

    A first column without a name (an index that pandas wrote) is left out. InputError: it can't be read or is empty, a
    name stands twice in the header, or a row has more or fewer cells than the header.
    """
    label = label or str(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{label} is not UTF-8 text: save it as CSV in UTF-8") from None
    except OSError as error:
        raise InputError(f"{label} can't be read: {error.strerror}") from None
    first = text.partition("\n")[0]
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count), strict=True)
    header: tuple[str, ...] | None = None
    rows, places = [], []
    try:
        for cells in reader:
            if not cells:
                continue
            if header is None:
                header = tuple(name.strip() for name in cells)
            elif len(cells) != len(header):
                raise InputError(
                    f"{label}, line {reader.line_num}: {len(cells)} cells where the header has {len(header)} columns; "
                    "put quotes round a text that holds the separator"
                )
            else:
                rows.append(dict(zip(header, cells, strict=True)))
                places.append(f"line {reader.line_num}")
    except csv.Error as error:
        raise InputError(f"{label}, line {reader.line_num}: {error}") from None
    if not header:
        raise InputError(f"{label} is empty: it has no header line")
    _refuse_repeats(label, header)
    if not rows:
        raise InputError(f"{label} has a header and no rows")
    if header[0] in ("", "Unnamed: 0"):
        rows = [{name: row[name] for name in header[1:]} for row in rows]
        header = header[1:]
    return Sheet(label, header, rows, places)


def _refuse_repeats(label: str, header: Iterable[str]) -> None:
    seen = set()
    for name in header:
        if name in seen:
            raise InputError(f"{label} has two columns named {name!r}: rename one")
        seen.add(name)
