"""What a search has decided, in the sweep's directory: its seed, and each cell that Bayesian search has suggested.

`search/<digest>/seed.json` and `search/<digest>/00007.json`, each made once and never changed: written beside, and linked to
its name, which one of all runners can do, on whichever host. So nobody holds a lock, a runner that is killed leaves a
suggestion whole or not at all, and whoever comes next runs it. What lies there belongs to one space: an edited one has
another digest.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitlight.errors import InputError
from vitlight.sweep.search import Search, Suggestion
from vitlight.sweep.whole_files import make_once

if TYPE_CHECKING:
    from vitlight.sweep.space import Sweep

__all__ = ["Journal", "settled"]

_NUMBERED = re.compile(r"\d{5}\.json")


def settled(sweep: Sweep, directory: Path) -> Sweep:
    """The sweep with the seed that its directory has, and the suggestions that lie there.

    InputError: another seed was asked for than the one there.
    """
    assert sweep.search is not None
    journal = Journal(directory, sweep.search)
    recorded, asked = journal.seed(), sweep.search.seed
    if recorded is not None and asked is not None and recorded != asked:
        raise InputError(
            f"--search-seed {asked}, but {directory} has the search of --search-seed {recorded}; leave it out, or give the "
            "sweep another name"
        )
    search = replace(sweep.search, seed=asked if recorded is None else recorded)
    if search.method == "bayes":
        search = replace(search, suggested=tuple(journal.suggestions()) or None)
    return replace(sweep, search=search)


class Journal:
    """One search in one directory. InputError, where it is written: it can't be."""

    def __init__(self, directory: Path, search: Search) -> None:
        self.folder = directory / "search" / search.digest
        self._known: dict[int, Suggestion] = {}

    def seed(self) -> int | None:
        """None before a runner has begun."""
        path = self.folder / "seed.json"
        try:
            return int(json.loads(path.read_bytes())["seed"])
        except FileNotFoundError:
            return None

    def begin(self, seed: int) -> int:
        """The seed of this search: this one, unless another runner was first."""
        self._make("seed", {"seed": seed})
        recorded = self.seed()
        assert recorded is not None
        return recorded

    def suggestions(self) -> list[Suggestion]:
        """Those made so far, in order."""
        if self.folder.is_dir():
            for path in self.folder.iterdir():
                if _NUMBERED.fullmatch(path.name) and int(path.stem) not in self._known:
                    values = json.loads(path.read_bytes())
                    index = int(path.stem)
                    self._known[index] = Suggestion(index, values["parameters"], values["refused"])
        return [self._known[index] for index in sorted(self._known)]

    def add(self, suggestion: Suggestion) -> bool:
        """False where somebody else has just suggested a cell of that number, which stays."""
        values = {"parameters": suggestion.parameters, "refused": suggestion.refused}
        return self._make(f"{suggestion.index:05d}", values)

    def _make(self, name: str, values: dict[str, Any]) -> bool:
        path = self.folder / f"{name}.json"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            return make_once(path, json.dumps(values).encode() + b"\n")
        except OSError as error:
            raise InputError(
                f"{path} can't be written ({error.strerror}); a search needs a folder with hard links (run.root, --root)"
            ) from None
