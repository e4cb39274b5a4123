"""What a runner does besides running cells: it asks a Bayesian search for more of them, and ends cells that fall behind.

All runners of a directory do it, each from what lies there. Suggestions are made once (see `search_journal`), and a request
to end says the same whoever writes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vitlight.errors import InputError, did_you_mean
from vitlight.sweep.claims import read_attempts
from vitlight.sweep.metric_history import MetricHistories
from vitlight.sweep.plan import PlannedCell, Resolve, plan_cell, settled_search, sweep_directory
from vitlight.sweep.recorded_plan import record_plan
from vitlight.sweep.search import Search, Suggestion
from vitlight.sweep.search_engine import Observed, ended_early, require_engine, suggest
from vitlight.sweep.search_journal import Journal
from vitlight.sweep.space import Sweep
from vitlight.sweep.status import claim_path, read_result
from vitlight.sweep.whole_files import replace_whole
from vitlight.training.end_requests import end_request_path

__all__ = ["Guide", "open_guide"]

_ENGINE_STATES = {"done": "finished", "stopped": "killed", "diverged": "failed", "failed": "failed"}
_MOST_REPEATS = 20  # of a suggestion that is a cell already, before its number is given up
_FAILED_AT_FIRST = 3


def open_guide(
    sweep: Sweep, planned: Sequence[PlannedCell], resolve: Resolve | None = None, root: Path | None = None
) -> Guide | None:
    """None for a grid or a random search whose cells all run to their end. Notes the seed of a search in its directory.

    InputError: another runner has just begun the search with another seed, the directory can't be written, the engine is
    missing.
    """
    if resolve is None:
        from vitlight.training.resolve import Resolver

        resolve = Resolver()
    if sweep.early_terminate is not None:
        require_engine()
    if sweep.search is not None:
        sweep = settled_search(sweep, resolve, root)
        assert sweep.search is not None
        journal = Journal(sweep_directory(planned), sweep.search)
        recorded = journal.begin(sweep.search.seed or 0)
        if recorded != (sweep.search.seed or 0) or not _are_of(sweep.search, planned):
            raise InputError(
                f"{sweep.path}: another runner has just begun this search with --search-seed {recorded}; try again"
            )
    is_bayes = sweep.search is not None and sweep.search.method == "bayes"
    return Guide(sweep, planned, resolve, root) if is_bayes or sweep.early_terminate is not None else None


def _are_of(search: Search, planned: Sequence[PlannedCell]) -> bool:
    """Whether the cells have the parameters that the search gives them: they were planned with the same seed."""
    suggested = {each.index: each.parameters for each in search.suggestions()}
    listed = [item.cell for item in planned if item.cell.index < search.run_cap]
    return all(suggested.get(cell.index) == cell.parameters for cell in listed)


class Guide:
    """`planned` are the cells known so far."""

    def __init__(self, sweep: Sweep, planned: Sequence[PlannedCell], resolve: Resolve, root: Path | None) -> None:
        self.planned = list(planned)
        self._lines: list[str] = []
        self._said: set[str] = set()
        self._sweep, self._resolve, self._root = sweep, resolve, root
        self._histories = MetricHistories(sweep.metric["name"]) if sweep.metric is not None else None
        self._by_index = {item.cell.index: item for item in planned}
        self._by_run_id = {item.run.run_id: item for item in planned}
        self._suggestions: dict[int, Suggestion] = {}
        self._journal: Journal | None = None
        self._has_given_up = False
        if sweep.search is not None and sweep.search.method == "bayes":
            self._journal = Journal(sweep_directory(planned), sweep.search)
            for suggestion in sweep.search.suggestions():
                self._journal.add(suggestion)
                if suggestion.refused is not None or suggestion.index in self._by_index:
                    self._suggestions[suggestion.index] = suggestion  # the others came while the cells were planned

    @property
    def has_more(self) -> bool:
        """Whether cells may come that aren't known yet."""
        search = self._sweep.search
        return (
            self._journal is not None
            and search is not None
            and not (self._has_given_up or len(self._suggestions) >= search.run_cap)
        )

    def more(self, is_idle: bool) -> list[PlannedCell]:
        """Cells that other runners have got suggested; where there are none and this one `is_idle`, one that is new."""
        if self._journal is None:
            return []
        found = self._adopt()
        while not found and is_idle and self.has_more:
            cells = [self._seen(self._suggestions[index]) for index in sorted(self._suggestions)]
            if self._gives_up(cells):
                break
            suggestion, planned = self._next(max(self._suggestions, default=-1) + 1, cells)
            if not self._journal.add(suggestion):
                found = self._adopt()  # of whoever was first
                continue
            self._suggestions[suggestion.index] = suggestion
            if planned is not None:
                found = self._know(suggestion.index, planned)
            else:
                self._say(f"cell {suggestion.index} is left out: {suggestion.refused}")
        if found:
            record_plan(self.planned)
        return found

    def take_lines(self) -> list[str]:
        """What there is to say since the last call."""
        lines, self._lines = self._lines, []
        return lines

    def look(self) -> None:
        """Ask cells to end that have fallen behind, where any has logged more of the metric."""
        rule, metric = self._sweep.early_terminate, self._sweep.metric
        if rule is None or metric is None or self._histories is None:
            return
        histories = {item.run.run_id: self._histories.of(item.run.run_dir) for item in self.planned}
        if not any(history.refresh() for history in histories.values()):
            return
        cells = [self._observed(item) for item in self.planned]
        by_id = {item.run.run_id: item for item in self.planned}
        for run_id, reason in ended_early(rule, metric, cells).items():
            path = end_request_path(by_id[run_id].run.run_dir)
            if not any(path.parent.glob(f"{path.stem}*")):  # not again of one that somebody has set aside
                replace_whole(path, f"{reason}\n".encode())
                self._say(f"ends early  {by_id[run_id].cell.label}  {run_id}  {reason}")

    def _adopt(self) -> list[PlannedCell]:
        """What lies in the journal and isn't known here."""
        assert self._journal is not None
        found: list[PlannedCell] = []
        for suggestion in self._journal.suggestions():
            if suggestion.index in self._suggestions:
                continue
            self._suggestions[suggestion.index] = suggestion
            if suggestion.refused is None:
                found += self._know(suggestion.index, self._plan(suggestion))
        return found

    def _know(self, index: int, planned: PlannedCell) -> list[PlannedCell]:
        """The cell, if its run is new; else nothing, and suggestion `index` counts as the first cell of that run."""
        first = self._by_index[index] = self._by_run_id.setdefault(planned.run.run_id, planned)
        new = [planned] if first is planned else []
        self.planned += new
        return new

    def _plan(self, suggestion: Suggestion) -> PlannedCell:
        cell = self._sweep.cell(suggestion.index, suggestion.parameters, self._sweep.swept_settings())
        return plan_cell(self._sweep, cell, self._resolve, self._root)

    def _gives_up(self, cells: Sequence[Observed]) -> bool:
        """Where nothing works, nothing is learned from more of it."""
        num_failed = len({cell.name for cell in cells if cell.state == "failed"})
        if num_failed >= _FAILED_AT_FIRST and not any(cell.state == "finished" for cell in cells):
            self._has_given_up = True
            self._say(f"no more cells are suggested: {num_failed} have failed, and none has a result")
        return self._has_given_up

    def _next(self, index: int, cells: Sequence[Observed]) -> tuple[Suggestion, PlannedCell | None]:
        """The next suggestion; without a cell where it is one that can't be run, or no new one is found."""
        search = self._sweep.search
        assert search is not None and search.metric is not None
        suggestion = Suggestion(index, suggest(search.specs, search.metric, search.seed or 0, index, cells))
        for attempt in range(_MOST_REPEATS):
            try:
                planned = self._plan(suggestion)
            except InputError as error:
                return Suggestion(index, suggestion.parameters, " ".join(str(error).split())), None
            if planned.run.run_id not in self._by_run_id:
                return suggestion, planned
            suggestion = search.other(index, attempt)
        return Suggestion(index, suggestion.parameters, "it is a cell already, and so are random ones"), None

    def _seen(self, suggestion: Suggestion) -> Observed:
        planned = self._by_index.get(suggestion.index)
        if planned is None:
            return Observed(suggestion.parameters, "failed", name=f"cell {suggestion.index}")
        return replace(self._observed(planned), parameters=suggestion.parameters)

    def _observed(self, planned: PlannedCell) -> Observed:
        """A cell as the engine sees it: one that waits is taken for a running one, since it will run."""
        assert self._histories is not None and self._sweep.metric is not None
        result = read_result(planned.run.run_dir)
        history, metric = self._histories.of(planned.run.run_dir), self._sweep.metric["name"]
        history.refresh()
        state = "running" if result is None else _ENGINE_STATES[result.status]
        if result is None and read_attempts(claim_path(planned)).reason is not None:
            state = "failed"
        last = _number(result.values.get(metric)) if result is not None else None
        if state == "finished" and last is None and not history.values and history.names:
            near = did_you_mean(metric, history.names)
            self._say(f"{planned.run.run_dir} has ended and never logged the metric {metric}{near}")
        return Observed(planned.cell.parameters, state, history.values, last, planned.run.run_id)

    def _say(self, line: str) -> None:
        """Once."""
        if line not in self._said:
            self._said.add(line)
            self._lines.append(line)


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
