"""`vitlight law` as text: a table of parameters for each law, and one line for each thing to know about it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vitlight.analysis.quantities import format_count, format_si

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from vitlight.analysis.law_fits import Answer

__all__ = ["formula_with_numbers", "print_laws"]

Record = dict[str, Any]

_SHOWN = 8  # sets without a law, and reasons why runs are left out
_MOST_RUNS = 20  # of those held out


def formula_with_numbers(formula: str, parameters: Mapping[str, float]) -> str:
    """`E = c + a C^-b` with the parameters' values in place of their names."""
    return re.sub(
        r"[A-Za-z']+", lambda word: f"{parameters[word[0]]:.4g}" if word[0] in parameters else word[0], formula
    )


def print_laws(answer: Answer) -> None:
    """Everything in `answer.as_json()`, for people. In a pipe a table is as wide as it needs to be."""
    record = answer.as_json()
    console = Console(highlight=False, soft_wrap=True)
    for law in record["laws"]:
        _print_law(console, law, record)
    failures = record["not_fitted"]
    for failure in failures[:_SHOWN]:
        console.print(f"[bold]{escape(failure['name'])}[/]: no law: {escape(failure['reason'])}")
    if len(failures) > _SHOWN:
        more = format_count(len(failures) - _SHOWN, "other set")
        console.print(f"no law for {more}, either: --json says why; --where, --by and --pool make other sets")
    _print_excluded(console, record["excluded"])
    console.print("FLOP = half a MAC; train FLOPs = 3 x 2 x forward MACs x images", style="dim")


def _print_law(console: Console, law: Record, record: Record) -> None:
    where = "" if law["num_cells"] == law["num_runs"] else f" in {format_count(law['num_cells'], 'cell')}"
    console.print(f"\n[bold]{escape(law['name'])}[/]: {format_count(law['num_runs'], 'run')}{where}, {law['form']}")
    console.print(escape(f"  {law['formula_with_numbers']}"))
    console.print(escape(f"  {law['meaning']}"), style="dim")
    level = f"{100 * law['level']:g} %"
    table = Table(caption=f"intervals: {law['interval_method']}, {level}", caption_justify="left")
    for title in ("parameter", "value", "from", "to"):
        table.add_column(title, justify="left" if title == "parameter" else "right")
    for row in law["parameters"]:
        table.add_row(row["name"], *(_number(row[key]) for key in ("value", "low", "high")))
    _print_table(console, table)
    console.print(_held_out_line(law["held_out"], level), style="bold")
    runs = law["held_out"].get("runs", ())
    for run in runs[:_MOST_RUNS]:
        where = "inside" if run["inside"] else "OUTSIDE"
        console.print(
            escape(
                f"  {run['run']}: {run['observed']:.4f} read, {run['predicted']:.4f} predicted, "
                f"{run['low']:.4f} to {run['high']:.4f}: {where}"
            )
        )
    if len(runs) > _MOST_RUNS:
        console.print(f"  {len(runs) - _MOST_RUNS} more: --json")
    if len(law["selection"]) > 1:
        scores = [(one["form"], one["held_out_error"]) for one in law["selection"]]
        tried = ", ".join(f"{form} {'not fitted' if score is None else _percent(score)}" for form, score in scores)
        console.print(f"forms by held-out error: {tried}; chosen: {law['form']}")
    for line in law["notes"]:
        console.print(escape(f"note: {line}"))
    for line in law["warnings"]:
        console.print(escape(f"warning: {line}"), style="yellow")
    if law["predictions"]:
        _print_rows(console, f"predicted error, {level} for a new run", law["predictions"])
    if law["frontier"] is not None:
        title = (
            f"best size and data: {law['frontier']['size']} ~ C^{_range(law['frontier']['size_exponent'])}, "
            f"images ~ C^{_range(law['frontier']['data_exponent'])}"
        )
        _print_rows(console, title, law["frontier"]["rows"])
        for line in law["frontier"]["warnings"]:
            console.print(escape(f"warning: {line}"), style="yellow")
    if law["budget"] is not None:
        _print_budget(console, law["budget"], record["question"]["size"], level)


def _held_out_line(held: Record, level: str) -> str:
    if "problem" in held:
        return escape(f"held out: none, so nothing is known of how it predicts: {held['problem']}")
    return escape(
        f"held out: the {format_count(held['num_runs'], 'run')} of most {held['axis']}; fitted without, the law is "
        f"{_percent(held['mean_abs_log_error'])} off on average, {held['num_inside']} of {held['num_runs']} in the {level} "
        "prediction band"
    )


def _print_budget(console: Console, budget: Record, size: str, level: str) -> None:
    console.print(f"[bold]budget {_number(budget['train_flops'])} train FLOPs[/]{escape(budget['note'])}")
    if "best" in budget:
        best = budget["best"]
        console.print(
            f"  best {size}: {_interval(best['size'])}; images to draw: {_interval(best['samples'])}; "
            f"predicted error {best['error']['value']:.4f} "
            f"({best['error']['low']:.4f} to {best['error']['high']:.4f}, {level})"
        )
    else:
        error = budget["error"]
        console.print(
            f"  predicted error of a new run: {error['value']:.4f} ({error['low']:.4f} to {error['high']:.4f}, {level})"
        )
    for line in budget["warnings"]:
        console.print(escape(f"warning: {line}"), style="yellow")
    if budget["models"]:
        _print_rows(console, f"models at this budget, predicted error of a new run, {level}", budget["models"])
    if budget["next_rule"]:
        console.print(escape(budget["next_rule"]))
    for place, run in enumerate(budget["next"], 1):
        narrowing = ", ".join(f"the {name}'s by {_percent(part)}" for name, part in run["narrowing"].items())
        console.print(
            escape(
                f"next {place}: {run['name']}: {_number(run['train_flops'])} train FLOPs, narrows {narrowing}\n"
                f"  {run['command']}"
            )
        )


def _print_rows(console: Console, title: str, rows: Sequence[Record]) -> None:
    console.print(escape(title))
    table = Table()
    for name, value in rows[0].items():
        if not name.endswith(("low", "high")):
            table.add_column(name.replace("_", " "), justify="left" if isinstance(value, str) else "right")
    for row in rows:
        table.add_row(*(_cell(row, name) for name in row if not name.endswith(("low", "high"))))
    _print_table(console, table)


def _print_excluded(console: Console, excluded: Sequence[Record]) -> None:
    if not excluded:
        return
    console.print(f"\nleft out: {format_count(len(excluded), 'run')}")
    reasons: dict[str, list[str]] = {}
    for one in excluded:
        reasons.setdefault(one["reason"], []).append(one["run"])
    for reason, runs in list(reasons.items())[:_SHOWN]:
        more = f" and {len(runs) - 1} more" if len(runs) > 1 else ""
        console.print(escape(f"  {runs[0]}{more}: {reason}"))
    if len(reasons) > _SHOWN:
        console.print(f"  {len(reasons) - _SHOWN} other reasons; --json lists every run")


def _print_table(console: Console, table: Table) -> None:
    if not console.is_terminal:
        width = console.measure(table, options=console.options.update(max_width=10_000)).maximum
        Console(width=width, highlight=False).print(table)
    else:
        console.print(table)


def _cell(row: Record, name: str) -> str:
    """A value, with its interval where the row has one: NAME_low and NAME_high, for the error also low and high."""
    value = row[name]
    if isinstance(value, str):
        return escape(value)
    for low, high in ((f"{name}_low", f"{name}_high"), *([("low", "high")] if name == "error" else [])):
        if low in row:
            return f"{_number(value)} ({_number(row[low])} to {_number(row[high])})"
    return _number(value)


def _number(value: float) -> str:
    return f"{value:.4g}"


def _percent(part: float) -> str:
    return f"{100 * part:.1f} %"


def _interval(values: Record) -> str:
    return f"{format_si(values['value'])} ({format_si(values['low'])} to {format_si(values['high'])})"


def _range(values: Record) -> str:
    return f"{values['value']:.3f} ({values['low']:.3f} to {values['high']:.3f})"
