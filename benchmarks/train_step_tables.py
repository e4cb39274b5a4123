"""The tables of the training-step benchmark, from what train_step.py measured."""

from statistics import median
from typing import Any

from tables import spread

Entry = dict[str, Any]
OURS, DEFAULT, MALLOC = "vitlight", "timm, as its script runs it", "vitlight's malloc"
# Dense bfloat16 FLOP/s of a device, for MFU: NVIDIA's data sheets (H100 SXM and H200: 989.4e12).
_PEAK_FLOPS = {"H100": 989.4e12, "H200": 989.4e12}


def ratios(entry: Entry, title: str) -> list[float]:
    """How many times as fast vitlight was as `title`, in each round."""
    ours = next(name for name in entry["contenders"] if name.startswith(OURS))
    its, mine = entry["contenders"][title]["seconds"], entry["contenders"][ours]["seconds"]
    return [theirs / own for theirs, own in zip(its, mine, strict=True)]


def best_of_timm(entry: Entry, with_our_malloc: bool) -> str | None:
    """The fastest of timm's contenders by the median of its rounds: of those with vitlight's malloc, or of those without."""
    timm = [
        title for title in entry["contenders"] if not title.startswith(OURS) and (MALLOC in title) == with_our_malloc
    ]
    return min(timm, key=lambda title: median(entry["contenders"][title]["seconds"]), default=None)


def render(report: dict[str, Any]) -> str:
    machine, measured = report["machine"], report["measured"]
    busy = spread([one["others_busy"] for one in measured], "{:.2f}".format)
    lines = [
        f"{machine['cores']} cores, {machine['device']}, {machine['system']}, torch {machine['torch']}; median (least to "
        f"most) of {report['rounds']} interleaved rounds; {report['minutes']:.0f} minutes in all.",
        "",
        f"Meanwhile everything else on these cores used {busy} of a core.",
        "",
        *_table(
            "model | batch, px | dtype | mode | x timm as its script runs it | x timm's best | "
            "x timm's best with vitlight's malloc | timm's best"
        ),
        *(_row(*_speed_cells(entry)) for entry in measured),
        "",
        *_table("model | dtype | mode | contender | ms a step | peak memory, MiB | MFU"),
    ]
    peak = next((flops for name, flops in _PEAK_FLOPS.items() if name in machine["device"]), None)
    for entry in measured:
        lines += [_row(*_cost_cells(entry, title, peak)) for title in entry["contenders"]]
    return "\n".join(lines) + "\n"


def _table(columns: str) -> list[str]:
    return [f"| {columns} |", "|---" * (columns.count("|") + 1) + "|"]


def _row(*cells: Any) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def _speed_cells(entry: Entry) -> tuple[Any, ...]:
    default = DEFAULT if DEFAULT in entry["contenders"] else None
    own, same = best_of_timm(entry, with_our_malloc=False), best_of_timm(entry, with_our_malloc=True)
    compared = [spread(ratios(entry, title), "{:.2f}".format) if title else "–" for title in (default, own, same)]
    setting = (own or same or "").removeprefix("timm, ")
    return (
        entry["title"],
        f"{entry['batch_size']}, {entry['image_size']}",
        entry["dtype"],
        entry["mode"],
        *compared,
        setting,
    )


def _cost_cells(entry: Entry, title: str, peak_flops: float | None) -> tuple[Any, ...]:
    one = entry["contenders"][title]
    macs = next(other["forward_macs"] for other in entry["contenders"].values() if "forward_macs" in other)
    step_flops = 3 * 2 * macs * entry["batch_size"]
    mfu = f"{step_flops / median(one['seconds']) / peak_flops:.3f}" if peak_flops else "–"
    milliseconds = spread([1000 * seconds for seconds in one["seconds"]], "{:,.0f}".format)
    return entry["title"], entry["dtype"], entry["mode"], title, milliseconds, f"{one['peak_mib']:,.0f}", mfu
