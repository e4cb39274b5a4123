"""Rows of a CSV become records in the words of the run table: units converted once, what follows from them derived."""

import re
import warnings
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from vitlight.analysis.columns import TABLE_COLUMNS
from vitlight.analysis.csv_forms import Form, Reading, find_form
from vitlight.analysis.csv_values import column_is_percent, is_missing, parse_cell, parse_decimal
from vitlight.analysis.published_words import (
    PRETRAIN_IMAGES,
    family_of_arch,
    flops_per_mac,
    known_sizes,
    name_arch,
    name_family,
    name_pretrain_data,
)
from vitlight.analysis.runs import CONFIG_KEYS, STATUSES
from vitlight.analysis.sheets import Sheet
from vitlight.analysis.wandb_export import WANDB_STATES
from vitlight.errors import InputError, did_you_mean

__all__ = ["read_records"]

_MEASURED = ("top1", "top5", "loss", "val_top1", "val_loss")


def read_records(sheet: Sheet, form: Form | None = None) -> list[dict[str, Any]]:
    """One record a row of the sheet, or of what its form makes of it: column -> value or None.

    Names that no column of the table has are kept, as text. InputError: no known form, or a cell that is not what its
    column asks for; the message names file, line and column.
    """
    form = form or find_form(sheet)
    if form.prepare is not None:
        sheet = form.prepare(sheet)
    sheet = _without_repeats(sheet, form)
    readings = _readings(sheet, form)
    taken = {name for names in readings.values() for name, _ in names}
    records = []
    for row, place in zip(sheet.rows, sheet.places, strict=True):
        record: dict[str, Any] = {name: row[name] or None for name in sheet.header if name not in taken}
        for column, names in readings.items():
            record[column] = _first_known(sheet, place, row, column, names, record)
        _complete(record, form, sheet.label, place)
        if record.get("status") == "failed" and record.get("reason") is None and "State" in row:
            record["reason"] = f"W&B: {row['State']}"
        records.append(record)
    return records


def _without_repeats(sheet: Sheet, form: Form) -> Sheet:
    """Rows without an id that agree in every cell are one result written twice."""
    if {"run_id", "ID"} & set(sheet.header) or form.prepare is not None:
        return sheet
    kept: dict[tuple[str, ...], int] = {}
    for number, row in enumerate(sheet.rows):
        kept.setdefault(tuple(row.values()), number)
    if repeats := len(sheet.rows) - len(kept):
        warnings.warn(
            f"{sheet.label}: {repeats} of {len(sheet.rows)} rows repeat another in every column and are counted once; "
            "give runs a seed or a run_id column to tell them apart",
            stacklevel=4,
        )
    order = list(kept.values())
    return Sheet(sheet.label, sheet.header, [sheet.rows[i] for i in order], [sheet.places[i] for i in order])


def _readings(sheet: Sheet, form: Form) -> dict[str, list[tuple[str, Reading]]]:
    """Column of the table -> the columns of the file that tell it, the one of its own name first; percent decided."""
    readings: dict[str, list[tuple[str, Reading]]] = {}
    for name in sheet.header:
        reading = form.reading(name)
        if reading is None:
            continue
        if TABLE_COLUMNS.get(reading.column) == "fraction" and reading.percent is None:
            try:
                percent = column_is_percent(row[name] for row in sheet.rows)
            except ValueError as error:
                raise InputError(f"{sheet.label}, column {name!r}: {error}") from None
            reading = Reading(reading.column, reading.power, percent)
        known = readings.setdefault(reading.column, [])
        known.insert(0 if name == reading.column else len(known), (name, reading))
    return readings


def _first_known(
    sheet: Sheet,
    place: str,
    row: dict[str, str],
    column: str,
    names: Sequence[tuple[str, Reading]],
    record: dict[str, Any],
) -> Any:
    """The value of `column`. Where further columns of the file say something else, that is kept under their names."""
    found = None
    for name, reading in names:
        text = row[name]
        try:
            value = _flops(text, reading.power) if column == "flops" else _parse(column, text, reading)
        except ValueError as error:
            if name not in CONFIG_KEYS.values():
                raise InputError(f"{sheet.label}, {place}: {name}: {error}") from None
            value = None  # a setting in words of its own, as a fraction of the images
            record[name] = text
        if found is None:
            found = value
        elif value is not None and value != found:
            record[name] = text
    return found


def _parse(column: str, text: str, reading: Reading) -> Any:
    if column == "status":
        return _status(text)
    return parse_cell(column, text, reading.power, bool(reading.percent))


def _flops(text: str, power: int) -> Decimal | None:
    return None if is_missing(text) else parse_decimal(text)[0].scaleb(power)


def _status(text: str) -> str | None:
    word = text.strip().lower()
    if not word or word in ("<na>", "nan"):
        return None
    status = WANDB_STATES.get(word, word)
    if status not in STATUSES:
        raise ValueError(f"{text!r} is no status{did_you_mean(word, STATUSES) or '; use ' + ', '.join(STATUSES)}")
    return status


def _complete(record: dict[str, Any], form: Form, label: str, place: str) -> None:
    """What follows from a record's own columns. A number that can't be known stays None, and `notes` says why."""
    notes = [record["notes"]] if record.get("notes") else []
    _complete_arch(record, form)
    if form.name == "a sweep over JFT":
        _complete_jft(record)
    if form.name == "a grid of augmentation":
        _complete_augmentation(record)
    if form.name == "published models":
        record.setdefault("metric", "imagenet_top1")
    record["family"] = _family(record)
    _complete_pretraining(record, notes)
    if record.get("is_published") is None:
        record["is_published"] = form.is_published
    if record["is_published"]:
        _complete_published(record)
    _complete_macs(record, notes)
    if record.get("convention") is None and record.get("forward_macs") is not None:
        record["convention"] = "MACs"
    _complete_samples(record)
    if "train_flops" not in record and _trained_at_this_size(record, form):
        record["train_flops"] = 3 * 2 * record["forward_macs"] * record["samples_seen"]
    record["notes"] = "; ".join(notes) or None
    if record.get("status") is None and any(record.get(column) is not None for column in _MEASURED):
        record["status"] = "done"
    unknown = all(record.get(name) is None for name in ("top1", "eval_split"))
    if unknown and record.get("status") == "done" and record.get("val_top1") is not None:
        record |= {"top1": record["val_top1"], "eval_split": "val"}  # as in result.json where there is no test set
    record["run_id"] = record.get("run_id") or f"{label}, {place}"
    record["source"] = record.get("source") or label


def _complete_arch(record: dict[str, Any], form: Form) -> None:
    """`arch` in our words where it is one of ours, and `variant` in the source's."""
    if not record.get("variant") and name_arch(record.get("arch") or "") is not None:
        record["variant"], record["arch"] = record["arch"], None
    if not record.get("arch"):
        variant = record.get("variant") or ""
        record["arch"] = name_arch(f"timm {variant}" if form.name == "results of timm" else variant) or variant or None


def _complete_macs(record: dict[str, Any], notes: list[str]) -> None:
    """forward_macs from FLOPs, by what the source says that it counts."""
    flops = record.pop("flops", None)
    if flops is None or record.get("forward_macs") is not None:
        return
    convention = record.get("convention")
    each = flops_per_mac(convention or "")
    if each is None:
        said = f"in the convention {convention!r}" if convention else "without a flops_convention"
        notes.append(f"forward_macs unknown: {flops.normalize():f} FLOPs are given {said}, neither MACs nor 2xMACs")
    else:
        record["forward_macs"] = int((flops / each).to_integral_value())


def _family(record: dict[str, Any]) -> str | None:
    if record.get("family"):
        return name_family(record["family"])
    return family_of_arch(str(record["arch"])) if record.get("arch") else None


def _complete_jft(record: dict[str, Any]) -> None:
    """Zhai et al. (arXiv 2106.04560): trained at 224 on a part of JFT-3B; the size of that part is an axis, so rows of
    one metric may stand beside each other whatever their data."""
    images = Decimal(record["num_train_samples"])
    short = f"{(images / 10**9).normalize():f}b" if images >= 10**9 else f"{(images / 10**6).normalize():f}m"
    steps = record.get("steps")
    record |= {"pretrain_data": f"jft{short}", "comparable": "jft", "image_size": record.get("image_size") or 224}
    if steps and record.get("samples_seen") and record["samples_seen"] % int(steps) == 0:
        record["global_batch_size"] = record["samples_seen"] // int(steps)


def _complete_augmentation(record: dict[str, Any]) -> None:
    """Steiner et al. (arXiv 2106.10270), Figure 4: trained at 224, judged on held-out images of the same data."""
    text = record["pretrain_data_text"] or ""
    record |= {"pretrain_data": name_pretrain_data(text), "image_size": 224, "eval_split": "val"}
    record["metric"] = f"{record['pretrain_data']}_val"
    images, found = PRETRAIN_IMAGES.get(record["pretrain_data"] or ""), re.search(r"(\d+) ep", text)
    if images and found:
        record |= {"num_train_samples": images, "epochs": float(found[1]), "samples_seen": int(found[1]) * images}


def _complete_pretraining(record: dict[str, Any], notes: list[str]) -> None:
    """`pretrain_data` in one word, the source's own words beside it, and images and epochs where they follow."""
    text = record.get("pretrain_data")
    if text is None or record.get("pretrain_data_text") is not None:
        return
    record["pretrain_data"] = name_pretrain_data(text)
    record["pretrain_data_text"] = text
    if record["pretrain_data"] is None and re.search(r"imagenet|jft|data", text.lower()):
        notes.append(f"pretrain_data {text!r} is none of the known")


def _complete_published(record: dict[str, Any]) -> None:
    """Images of the pretraining data; images seen, where one stage of whole epochs at 224 px says it; and size of an
    architecture of ours that the source leaves out, counted at the same resolution."""
    record["comparable"] = record.get("comparable") or record.get("pretrain_data")
    text = record.get("pretrain_data_text") or ""
    images = record.get("num_train_samples") or PRETRAIN_IMAGES.get(record.get("pretrain_data") or "")
    record["num_train_samples"] = images
    epochs = re.findall(r"\b(\d+) ep\b", text)
    one_stage = len(epochs) == 1 and not re.search(r"->|\bft\b|%|distil", text)
    if images and one_stage and record.get("image_size") == 224 and record.get("samples_seen") is None:
        record |= {"epochs": float(epochs[0]), "samples_seen": int(epochs[0]) * images}
    size = known_sizes().get(record.get("arch") or "")
    if size is not None and record.get("image_size") == size["image_size"]:
        for column in ("params", "forward_macs"):
            if record.get(column) is None and (column == "params" or record.get("flops") is None):
                record[column] = size[column]


def _complete_samples(record: dict[str, Any]) -> None:
    """Images seen from epochs or epochs from images seen, where the file has no column for the one."""
    images, epochs, seen = (record.get(name) for name in ("num_train_samples", "epochs", "samples_seen"))
    if images and epochs is not None and "samples_seen" not in record and float(epochs * images).is_integer():
        record["samples_seen"] = int(epochs * images)
    if images and seen is not None and "epochs" not in record:
        record["epochs"] = seen / images


def _trained_at_this_size(record: dict[str, Any], form: Form) -> bool:
    """Whether forward_macs, which depend on the image size, are those of the images that were trained on."""
    if record.get("forward_macs") is None or record.get("samples_seen") is None:
        return False
    text = record.get("pretrain_data_text") or ""
    return form.name != "published models" or f"@{record.get('image_size')}" in text
