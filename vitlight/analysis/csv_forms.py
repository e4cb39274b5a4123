"""The forms of CSV that a run table is read from, and what the columns of each mean.

Every form is one list of names: a column of the file, the column of the table it fills, and its unit. A name that no
form knows is kept as it is.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from vitlight.analysis.columns import TABLE_COLUMNS
from vitlight.analysis.runs import CONFIG_KEYS, METRIC_KEYS
from vitlight.analysis.sheets import Sheet
from vitlight.analysis.wandb_export import flatten_api_table
from vitlight.errors import InputError

__all__ = ["FORMS", "FRACTION_SUFFIX", "Form", "Reading", "find_form"]

FRACTION_SUFFIX = "_pct"


@dataclass(frozen=True)
class Reading:
    """`column` of the table, from a number in units of 10 ** `power`; `percent` None: the values tell."""

    column: str
    power: int = 0
    percent: bool | None = None


@dataclass(frozen=True)
class Form:
    """`needs`: the columns by which it is known, all of the first and one of the second. `prepare` rewrites the sheet."""

    name: str
    needs: tuple[str, ...]
    one_of: tuple[str, ...] = ()
    readings: Mapping[str, Reading] = field(default_factory=dict)
    prepare: Callable[[Sheet], Sheet] | None = None
    is_published: bool = False

    def described(self) -> str:
        """What a message says that a file of this form has."""
        parts = [", ".join(self.needs)] if self.needs else []
        if self.one_of:
            parts.append(f"one of {', '.join(self.one_of)}")
        return f"{self.name} ({' and '.join(parts)})"

    def reading(self, name: str) -> Reading | None:
        """What the file's column `name` fills; None where it is none of ours."""
        if name in self.readings:
            return self.readings[name]
        if name in _COMMON:
            return _COMMON[name]
        column = name.removesuffix(FRACTION_SUFFIX)
        if column != name and TABLE_COLUMNS.get(column) == "fraction":
            return Reading(column, percent=True)
        return None


# `flops` is no column of the table: it becomes forward_macs by what `convention` says.
_COMMON = {
    **{name: Reading(name) for name in TABLE_COLUMNS},
    **{key: Reading(column) for keys in (METRIC_KEYS, CONFIG_KEYS) for column, key in keys.items()},
    "params_M": Reading("params", 6),
    "macs": Reading("forward_macs"),
    "macs_G": Reading("forward_macs", 9),
    "gmacs": Reading("forward_macs", 9),
    "flops": Reading("flops"),
    "flops_G": Reading("flops", 9),
    "gflops": Reading("flops", 9),
    "flops_convention": Reading("convention"),
    "train_exaflops": Reading("train_flops", 18),
    "resolution": Reading("image_size"),
    "images_seen": Reading("samples_seen"),
}
_MODEL = {"model": Reading("variant")}
_MEASURED = ("top1", "top1_pct", "val_top1", "val/top1", "top5", "loss", "val_loss", "train_flops")


def _expand_summary(sheet: Sheet) -> Sheet:
    """A row a cell becomes a row a run: `seeds` and `top1_values` list the runs behind the mean in one order."""
    kept = [name for name in sheet.header if name not in ("n", "seeds", "top1_values") and not _is_statistic(name)]
    rows, places = [], []
    for row, place in zip(sheet.rows, sheet.places, strict=True):
        seeds, values = row["seeds"].split(), row["top1_values"].split()
        if not values or len(seeds) != len(values):
            raise InputError(
                f"{sheet.label}, {place}: {len(seeds)} seeds and {len(values)} top1_values; they go in pairs"
            )
        for seed, value in zip(seeds, values, strict=True):
            rows.append({name: row[name] for name in kept} | {"seed": seed.replace("?", ""), "top1": value})
            places.append(f"{place}, seed {seed}")
    return Sheet(sheet.label, (*kept, "seed", "top1"), rows, places)


def _is_statistic(name: str) -> bool:
    """Follows from the runs, which are the rows now; means of other columns do not, and are kept under their names."""
    return re.fullmatch(r"top1_(mean|std|min|max|eval_standard_error)", name) is not None


_WANDB = {
    "ID": Reading("run_id"),
    "Name": Reading("name"),
    "State": Reading("status"),
    "Notes": Reading("notes"),
    "Created": Reading("started_at"),
    "Runtime": Reading("wall_seconds"),
}
# In the order of trial: the more special first.
FORMS = (
    Form("a summary of vitlight", ("arch", "top1_mean", "seeds", "top1_values"), prepare=_expand_summary),
    Form(
        "published models",
        ("variant", "imagenet_top1"),
        readings={"imagenet_top1": Reading("top1", percent=True)},
        is_published=True,
    ),
    Form(
        "a sweep over JFT",
        ("model", "jft_images", "metric", "top1"),
        readings=_MODEL | {"jft_images": Reading("num_train_samples"), "top1": Reading("top1", percent=True)},
        is_published=True,
    ),
    Form(
        "a grid of augmentation",
        ("data", "model", "regularisation", "augmentation", "val_acc_pct"),
        readings=_MODEL | {"data": Reading("pretrain_data_text"), "val_acc_pct": Reading("top1", percent=True)},
        is_published=True,
    ),
    Form(
        "results of timm",
        ("model", "param_count"),
        ("top1", "infer_gmacs", "gmacs"),
        readings=_MODEL
        | {
            "top1": Reading("top1", percent=True),
            "top5": Reading("top5", percent=True),
            "param_count": Reading("params", 6),
            "infer_gmacs": Reading("forward_macs", 9),
            "img_size": Reading("image_size"),
            "infer_img_size": Reading("image_size"),
        },
        is_published=True,
    ),
    Form("a table of W&B runs", ("Name", "State"), readings=_WANDB),
    Form("summary, config and name of W&B's API", ("summary", "config", "name"), prepare=flatten_api_table),
    Form("runs of vitlight", ("arch",), _MEASURED),
    Form("any table of models", ("variant",), _MEASURED),
    Form("any table of models", ("model",), _MEASURED, readings=_MODEL),
)


def find_form(sheet: Sheet) -> Form:
    """The form that the header shows. InputError names the columns found, and the forms there are."""
    names = set(sheet.header)
    for form in FORMS:
        if names.issuperset(form.needs) and (not form.one_of or names.intersection(form.one_of)):
            return form
    if any(name.endswith("__MIN") for name in names):
        raise InputError(
            f"{sheet.label} is the export of a W&B chart, which has no runs: export the table of runs instead"
        )
    known = "; ".join(dict.fromkeys(form.described() for form in FORMS))
    raise InputError(f"{sheet.label} has none of the known forms. Its columns: {sheet.columns_named()}. Known: {known}")
