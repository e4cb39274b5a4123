"""Whether the tensors of a file fit a model, and what to say where they don't."""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vitlight.errors import InputError
from vitlight.models.layouts.entry import Entry
from vitlight.models.layouts.resize import Grids, can_be_resized, resize

__all__ = ["check_dtypes", "check_names", "fitted", "misfit_message"]

# The setting that decides whether a model has a tensor, by its name in any layout; the first that fits is told.
_SETTINGS = (
    (r"reg_token|registers", "num_registers"),
    (r"(^|[./_])cls($|_)|class_token", "pool or class_token"),
    (r"pos_?(ition_)?emb", "posemb"),
    (r"[qk]_norm", "qk_norm"),
    (r"\.ls[12]\.|\.scale[12]$", "layer_scale"),
    (r"attn_pool|attention_pool|MAPHead", "pool"),
    (r"pre_logits|representation|hidden|pooler", "representation_layer or hidden_head"),
    (r"fc_norm|^norm\.|^head\.norm\.", "norm_position"),
    (r"(^|\.)(head|fc|classifier)(_dist)?[./]", "head='fresh' to leave our classifier as it is"),
    (r"rel_pos|bias_table", "relative_attention"),
    (r"shortcut|downsample", "shortcut_projection"),
    (r"^stem\..*\.bias$|^stem\.\d\.bias$", "stem_bias"),
    (r"backbone", "backbone"),
)


def _setting(name: str) -> str:
    return next((setting for pattern, setting in _SETTINGS if re.search(pattern, name)), "arch")


def _listed(names: Sequence[str], shown: int = 3) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def check_names(layout: str, entries: Sequence[Entry], names: Sequence[str]) -> None:
    """InputError unless `names` are exactly the tensors that the entries need."""
    needed = [name for entry in entries for name in entry.theirs]
    missing = sorted(set(needed) - set(names), key=needed.index)
    extra = [name for name in names if name not in set(needed)]
    if not missing and not extra:
        return
    parts = []
    if missing:
        parts.append(f"lack {_listed(missing)}, which the model needs")
    if extra:
        parts.append(f"hold {_listed(extra)}, which the model has no place for")
    settings = list(dict.fromkeys(_setting(name) for name in (missing[:3] + extra[:3])))
    raise InputError(f"the weights (layout {layout!r}) {' and '.join(parts)}; see {', '.join(settings)}")


def check_dtypes(entries: Sequence[Entry], state: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> None:
    """InputError unless our real tensors come from real ones, and our counters (num_batches_tracked) from integers."""
    for entry in entries:
        is_counter = any(not ours[name].is_floating_point() for name in entry.ours)
        for name in entry.theirs:
            dtype = state[name].dtype
            is_integer = not (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool)
            if not (is_integer if is_counter else dtype.is_floating_point):
                kind = "an integer" if is_counter else "a floating"
                raise InputError(f"{name} is {dtype} in the weights, and {kind} dtype in the model; convert it first")


def fitted(entry: Entry, theirs: list[Tensor], ours: Mapping[str, Tensor]) -> list[tuple[Tensor, Grids | None]] | None:
    """Our tensors out of theirs, and where one was resized, from which grid to which. None where they don't fit.

    InputError where a grid is in the way.
    """
    expected = _expected(entry, ours)
    got = [tuple(tensor.shape) for tensor in theirs]
    if got == expected:
        return [(tensor, None) for tensor in entry.to_ours(theirs)]
    same_ndim = [len(shape) for shape in got] == [len(shape) for shape in expected]
    if not same_ndim or not all(can_be_resized(name) for name in entry.ours):
        return None
    result: list[tuple[Tensor, Grids | None]] = []
    for name, tensor in zip(entry.ours, entry.to_ours(theirs), strict=True):
        shape = ours[name].shape
        features = 2 if name == "posemb" else 0
        if tensor.shape[features] != shape[features]:
            return None
        result.append(resize(name, tensor, shape))
    return result


def _expected(entry: Entry, ours: Mapping[str, Tensor]) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for tensor in entry.to_theirs([ours[name].to("meta") for name in entry.ours])]


def misfit_message(
    misfits: Sequence[Entry], state: Mapping[str, Tensor], ours: Mapping[str, Tensor], heads: tuple[str, ...]
) -> str:
    """One line on tensors of another shape: the first of them, both shapes, and the setting that decides.

    `heads` are the beginnings of our names of the classifier's tensors.
    """
    of_body = [entry for entry in misfits if not entry.ours[0].startswith(heads)]
    entry = (of_body or misfits)[0]
    name, got, expected = next(
        (name, got, shape)
        for name, shape in zip(entry.theirs, _expected(entry, ours), strict=True)
        if (got := tuple(state[name].shape)) != shape
    )
    message = f"{name} is {got} in the weights and {expected} in the model"
    if len(misfits) > 1:
        message += f", and {len(misfits) - 1} other {'tensor differs' if len(misfits) == 2 else 'tensors differ'}"
    return f"{message}; {_cause(entry, [state[name] for name in entry.theirs], ours, heads)}"


def _cause(entry: Entry, theirs: list[Tensor], ours: Mapping[str, Tensor], heads: tuple[str, ...]) -> str:
    name = entry.ours[0]
    if re.match(r"network\..*(pos_embed|relative_position|rel_pos)", name):
        return "a timm: model is not resized to another resolution: build it with image_size as in the weights"
    question = "is this the arch, with its patch size, that the weights were made for?"
    if [tensor.ndim for tensor in theirs] != [len(shape) for shape in _expected(entry, ours)]:
        return question
    if name.startswith(heads):
        num_classes, wanted = len(entry.to_ours(theirs)[0]), len(ours[name])
        if num_classes != wanted:
            return (
                f"the weights have {num_classes} classes and the model num_classes={wanted}: build it with "
                "num_classes as in the weights, or load_weights(..., head='fresh') leaves its own head as it is"
            )
    if name in ("patch_embed.weight", "stem.0.weight", "backbone.stem.weight"):
        in_channels, wanted = entry.to_ours(theirs)[0].shape[1], ours[name].shape[1]
        if in_channels != wanted:
            return (
                f"the weights have {in_channels} channels, build the model with in_channels={in_channels}, not {wanted}"
            )
    return question
