"""`vitlight sweep plan`: every cell checked, and what the sweep will cost, before anything runs."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vitlight.errors import InputError
from vitlight.messages import say
from vitlight.sweep.known_plan import add_place_arguments, check_directory, load_place

if TYPE_CHECKING:
    from vitlight.sweep.budget import Budget
    from vitlight.sweep.forecast import Forecast
    from vitlight.sweep.plan import PlannedCell
    from vitlight.sweep.rates import Rates
    from vitlight.sweep.space import Cell, Sweep

__all__ = ["add_file_arguments", "add_plan_parser", "load_plan", "plan_command"]

MEASURED = "measured"
MOST_TRIES = 8  # to meet a budget with durations in whole steps


def add_plan_parser(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `plan` to the argparse subparsers of `sweep`; the handler, Namespace -> exit code, is left in `args.handler`."""
    text = "check every cell and show what it costs; runs nothing"
    parser = actions.add_parser("plan", help=text, description=text)
    add_file_arguments(parser)
    parser.add_argument("--json", action="store_true", help="a JSON list of rows")
    parser.add_argument(
        "--rate",
        action="append",
        metavar="[ARCH=]RATE",
        help="what one device trains: 2500images/s, 90TFLOP/s, 'coatnet_*=800images/s' (may be repeated); or measured: "
        "as the sweep's cells did so far (default, where there are any)",
    )
    parser.add_argument(
        "--calibrate",
        type=float,
        metavar="SECONDS",
        help="train the smallest and the largest cell of each family so long on this machine, and keep their rates",
    )
    parser.add_argument("--devices", type=int, metavar="N", help="estimate the wall-clock time on N devices")
    parser.add_argument(
        "--device-memory", type=float, metavar="GIB", help="of one device (default: this machine's GPU, if any)"
    )
    parser.add_argument("--budget", metavar="AMOUNT", help="training FLOPs (3e18) or device-hours (24h, 90m, 2d)")
    parser.add_argument(
        "--budget-by",
        choices=("cells", "scale"),
        help="keep the cheapest cells, whole seeds (cells, default), or shorten all durations by one factor (scale)",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the sweep that the budget pays for")
    parser.set_defaults(handler=plan_command)


def add_file_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the sweep is, and the seed of its search."""
    add_place_arguments(parser)
    parser.add_argument(
        "--search-seed",
        type=int,
        metavar="N",
        help="of the random numbers of method: random and bayes (default: the one that the sweep's directory has, or 0)",
    )


def plan_command(args: argparse.Namespace) -> int:
    """Print the cells of the sweep with their cost; 1 where some don't fit the memory, else 0. InputError where one is
    invalid."""
    from vitlight.sweep.added import ADDED, read_added
    from vitlight.sweep.budget import parse_budget
    from vitlight.sweep.forecast import forecast
    from vitlight.sweep.given_rates import parse_rate
    from vitlight.sweep.plan import sweep_directory
    from vitlight.sweep.plan_table import print_forecast, rows_of

    _check_options(args)
    budget = None if args.budget is None else parse_budget(args.budget)
    given = tuple(parse_rate(text) for text in args.rate or () if text != MEASURED)
    sweep, planned = load_plan(args)
    if sweep.search is not None and (args.out is not None or args.budget_by == "scale"):
        raise InputError(f"{sweep.path} is a search, of which no smaller one can be written; lower its run_cap")
    if args.out is not None and read_added(sweep_directory(planned)):
        raise InputError(
            f"--out {args.out}: {sweep_directory(planned) / ADDED} adds its cells to any file named {sweep.name}, whatever "
            f"the budget; put them into {sweep.path} and remove it"
        )
    rates = replace(_measured(args, planned), given=given)
    result = forecast(planned, rates, _memory_bytes(args), budget if args.budget_by != "scale" else None)
    if args.json:
        print(json.dumps(rows_of(result), indent=1))
    else:
        print_forecast(result, args.devices)
    out = sys.stderr if args.json else sys.stdout
    if (note := sweep.search_note(len(planned))) is not None:
        print(note, file=out)
    if sweep.early_terminate is not None:
        print("early_terminate: costs are those of cells that run to their end", file=out)
    if budget is not None:
        reduce = _scale if args.budget_by == "scale" else _reduce
        for line in reduce(args, sweep, result, rates, budget):
            print(line, file=out)
    return 1 if result.too_large else 0


def load_plan(args: argparse.Namespace) -> tuple[Sweep, list[PlannedCell]]:
    """Load the file and resolve its cells, with a bar over them in a terminal; `args.root` becomes the folder of the runs
    where that was said, or their directory was named. On stderr every invalid cell is named, and that the runs lie under
    another name than the sweep's, as they do after its file was copied and one of two changed."""
    from vitlight.sweep.plan import InvalidCells, plan_sweep, sweep_directory

    def track(cells: Sequence[Cell]) -> Iterable[Cell]:
        from rich.console import Console
        from rich.progress import track

        console = Console(stderr=True)
        return track(cells, "checking cells", console=console, transient=True, disable=not console.is_terminal)

    sweep, args.root, named = load_place(args)
    try:
        planned = plan_sweep(sweep, root=args.root, track=track)
    except InvalidCells as error:
        for cell, reason in error.reasons if len(error.reasons) > 1 else ():
            say(f"invalid cell {cell.index} ({cell.label}): {reason}")
        raise
    directory = sweep_directory(planned)
    check_directory(named, directory)
    if directory.name != sweep.name:
        say(
            f"{sweep.path}: its name is {sweep.name}, and its runs go to {directory}, as --run.name of its command says"
        )
    return sweep, planned


def _check_options(args: argparse.Namespace) -> None:
    """InputError for an option that would say nothing, or nothing that can be."""
    if args.budget is None:
        for option in ("budget_by", "out"):
            if getattr(args, option) is not None:
                raise InputError(f"--{option.replace('_', '-')} is about a budget; give --budget too")
    if args.rate and args.calibrate is not None:
        raise InputError("--rate and --calibrate both say how fast cells train; keep one of them")
    for option, least in (("calibrate", 0.0), ("device_memory", 0.0), ("devices", 0)):
        value = getattr(args, option)
        if value is not None and not value > least:
            raise InputError(f"--{option.replace('_', '-')} {value:g} is not above {least:g}")


def _measured(args: argparse.Namespace, planned: Sequence[PlannedCell]) -> Rates:
    """What the sweep's cells, and calibrations before or now, have measured."""
    from vitlight.sweep.rates import CALIBRATION, known_rates, write_calibration

    rates = known_rates(planned)
    directory = planned[0].run.run_dir.parent
    if MEASURED in (args.rate or ()) and not rates.measurements:
        raise InputError(f"--rate {MEASURED}, but no cell in {directory} has trained yet; give a rate, or --calibrate")
    if args.calibrate is None:
        return rates
    from vitlight.sweep.calibrate import calibrate, cells_to_calibrate

    measured = [calibrate(item, args.calibrate, say) for item in cells_to_calibrate(planned, rates)]
    if measured:
        write_calibration(directory / CALIBRATION, measured)
    return known_rates(planned)


def _memory_bytes(args: argparse.Namespace) -> int | None:
    from vitlight.sweep.preflight import local_gpu_bytes

    return local_gpu_bytes() if args.device_memory is None else int(args.device_memory * 2**30)


def _reduce(args: argparse.Namespace, sweep: Sweep, result: Forecast, rates: Rates, budget: Budget) -> Iterator[str]:
    """What the budget leaves, in lines; it is written where that is asked for."""
    from vitlight.sweep.plan import number_ranges
    from vitlight.sweep.reduced import kept_parameters, write_sweep

    assert result.kept is not None
    kept, dropped = result.kept.kept, result.kept.dropped
    summary = f"{len(kept)} of {len(result.cells)} cells, {budget.text(result.kept.cost)} of {budget.text()}"
    yield f"budget: keeps {summary}: the cheapest, all seeds of each"
    if dropped:
        yield f"dropped: cells {number_ranges([item.cell.index for item in dropped])}"
    if args.out is not None:
        note = f"{sweep.path} within {budget.text()}: {summary}; the cheapest, all seeds of each."
        write_sweep(args.out, sweep, kept_parameters(sweep, kept), note)
        yield f"written: {args.out}"


def _scale(args: argparse.Namespace, sweep: Sweep, result: Forecast, rates: Rates, budget: Budget) -> Iterator[str]:
    """One factor on all durations. What it comes to is planned, not computed: durations are rounded to steps."""
    from vitlight.sweep.forecast import total_cost
    from vitlight.sweep.plan import plan_sweep
    from vitlight.sweep.reduced import scaled_parameters, write_sweep
    from vitlight.sweep.space import load_sweep

    planned = [cell.planned for cell in result.cells]
    total = total_cost(planned, budget, rates)
    if total <= budget.amount:
        yield f"budget: pays for the whole sweep, {budget.text(total)} of {budget.text()}"
        return
    factor = budget.amount / total
    if args.out is None:
        yield f"budget: all durations times {factor:.4f} cost about {budget.text()}; --out FILE writes that"
        return
    for _ in range(MOST_TRIES):
        note = f"{sweep.path} within {budget.text()}: all durations times {factor:.6g}. Other durations are other runs."
        write_sweep(args.out, sweep, scaled_parameters(sweep, planned, factor), note)
        total = total_cost(plan_sweep(load_sweep(args.out), root=args.root, track=iter), budget, rates)
        if total <= budget.amount:
            yield f"budget: all durations times {factor:.6g}, {budget.text(total)} of {budget.text()}"
            yield f"written: {args.out}"
            return
        factor *= 0.999 * budget.amount / total
    args.out.unlink()
    raise InputError(
        f"a budget of {budget.text()} is too small for {len(planned)} cells with durations that are whole steps: the last "
        f"try cost {budget.text(total)}; use --budget-by cells"
    )
