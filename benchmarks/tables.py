"""The tables of the data-loading benchmark, from what data_loading.py measured."""

from collections.abc import Callable
from statistics import median
from typing import Any

BASELINE, BOUND, OURS = "webdataset_pillow", "decode_only", "vitlight"
BOUNDS = (BOUND, "decode_only_fast")
STAGES = ("read", "decode", "resize", "collate")

Entry = dict[str, Any]


def speeds(entry: Entry) -> list[float]:
    return [one["images_per_second"] for one in entry["rounds"]]


def ratios(entry: Entry, other: Entry | None) -> list[float]:
    """Of the two in the same round; empty where one of them has no figures."""
    if other is None or "reason" in entry or "reason" in other:
        return []
    return [mine / its for mine, its in zip(speeds(entry), speeds(other), strict=True)]


def spread(values: list[float], form: Callable[[float], str]) -> str:
    """`median (least to most)`."""
    return f"{form(median(values))} ({form(min(values))} to {form(max(values))})" if values else "–"


def render(results: dict[str, Any]) -> str:
    machine = results["machine"]
    lines = [
        f"{machine['cores_used']} cores of {machine['cpu']}, {machine['system']}; batches of {results['batch_size']}; "
        f"median (least to most) of {results['rounds']} interleaved rounds; {results['minutes']:.0f} minutes in all.",
        "",
        f"Meanwhile everything else on these cores used {spread(others_busy(results), lambda x: f'{x:.2f}')} of a core.",
        "",
    ]
    for one in results["cases"]:
        lines += case_lines(one["case"], one["contenders"])
    return "\n".join(lines + settings_lines(results["cases"])) + "\n"


def others_busy(results: dict[str, Any]) -> list[float]:
    entries = [entry for one in results["cases"] for entry in one["contenders"].values()]
    return [one["others_busy"] for entry in entries for one in entry["rounds"] if "others_busy" in one]


def case_lines(case: dict[str, Any], contenders: dict[str, Entry]) -> list[str]:
    kilobytes = case["mean_bytes"] / 1000
    lines = [
        f"## {case['name']}",
        "",
        f"{case['num_images']:,} images of {case['width']} x {case['height']} pixels, {kilobytes:.1f} kB each "
        f"(.{case['extension']}), cropped to {case['output_size']}.",
        "",
        "| loader | images/s | x webdataset + Pillow | of decoding alone | vitlight / this | cores busy | first batch, s |",
        "|---|---|---|---|---|---|---|",
    ]
    measured = {name: entry for name, entry in contenders.items() if "reason" not in entry}
    for name in sorted(measured, key=lambda name: -median(speeds(measured[name]))):
        entry = measured[name]
        ours = contenders.get(OURS) if name != OURS and name not in BOUNDS else None
        cells = [
            entry["title"],
            spread(speeds(entry), lambda x: f"{x:,.0f}"),
            spread(ratios(entry, contenders.get(BASELINE)), lambda x: f"{x:.2f}"),
            spread(ratios(entry, contenders.get(BOUND)), lambda x: f"{x:.2f}"),
            spread(ratios(ours, entry) if ours else [], lambda x: f"{x:.2f}"),
            middle(entry, "cores_busy", ".2f"),
            middle(entry, "start_seconds", ".1f"),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [f"\nNot measured: {e['title']}: {e['reason']}" for e in contenders.values() if "reason" in e]
    return [*lines, "", *stage_lines(measured)]


def middle(entry: Entry, field: str, form: str) -> str:
    values = [one[field] for one in entry["rounds"] if field in one]
    return format(median(values), form) if values else "–"


def stage_lines(measured: dict[str, Entry]) -> list[str]:
    """Where the processor time of one image goes: milliseconds of one core. `all` is what the loader's processes used; what
    its stages, measured alone on one core, don't explain of it is `rest`: passing batches on, the loader's own work, and
    what the two cores take from each other's memory bandwidth. Waiting is not in it: see `cores busy`."""
    lines = [
        f"| CPU-ms per image | all | {' | '.join(STAGES)} | rest | decode share | bound by |",
        "|---|---|" + "---|" * (len(STAGES) + 3),
    ]
    for name in sorted(measured, key=lambda name: -median(speeds(measured[name]))):
        entry = measured[name]
        whole = 1000 * median(
            one.get("cores_busy", entry["workers"]) / one["images_per_second"] for one in entry["rounds"]
        )
        stages = {stage: 1000 * seconds for stage, seconds in entry["stages"].items()}
        costs = {**stages, "rest": whole - sum(stages.values())}
        cells = [f"{stages[stage]:.3f}" if stage in stages else "–" for stage in STAGES]
        share = f"{stages['decode'] / whole:.2f}" if "decode" in stages else "–"
        bound = max(costs, key=lambda stage: costs[stage])
        lines.append(
            f"| {entry['title']} | {whole:.3f} | {' | '.join(cells)} | {costs['rest']:.3f} | {share} | {bound} |"
        )
    return [*lines, ""]


def settings_lines(cases: list[dict[str, Any]]) -> list[str]:
    lines = ["## Settings and versions", "", "| loader | settings | versions |", "|---|---|---|"]
    seen: dict[str, Entry] = {}
    for one in cases:
        for name, entry in one["contenders"].items():
            if "settings" in entry:
                seen.setdefault(name, entry)
    for entry in seen.values():
        versions = ", ".join(f"{name} {number}" for name, number in entry["versions"].items())
        lines.append(f"| {entry['title']} | {entry['settings']} | {versions} |")
    return lines
