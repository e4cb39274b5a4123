"""Where a model's parameters and multiply-adds lie: module by module, and by what the parts are for."""

import re
from typing import Literal, NamedTuple, get_args

from torch import nn

from vitlight.cost.trace import macs_by_module, meta_image, to_meta

__all__ = ["Group", "GroupRow", "ModuleRow", "group_table", "module_table", "params_by_group"]

Group = Literal["embedding", "position", "conv", "attention", "mlp", "norm", "head", "other"]


class ModuleRow(NamedTuple):
    """One module. `own_` is what no module inside it accounts for; the `own_` columns add up to the model's totals.

    `module` is its path, "" for the model; `depth` the number of names in it; `share` of the model's forward MACs.
    A parameter that several modules share belongs to the first.
    """

    module: str
    depth: int
    type: str
    params: int
    forward_macs: int
    share: float
    own_params: int
    own_forward_macs: int


class GroupRow(NamedTuple):
    """What one group of parts costs; the rows of a model add up to its totals."""

    group: Group
    params: int
    forward_macs: int
    share: float


def module_table(model: nn.Module, image_size: int, in_channels: int | None = None) -> list[ModuleRow]:
    """A row for each module, parents before children; MACs of one image, as `forward_macs` counts them.

    The model may be on any device and is left as it is. Raises InputError where it doesn't take such an image.
    """
    macs = macs_by_module(to_meta(model).eval(), meta_image(model, image_size, in_channels))
    params = _own_params(model)
    total = max(sum(macs.values()), 1)
    rows = []
    for path, module in model.named_modules():
        inside = [name for name in params if path == "" or name == path or name.startswith(path + ".")]
        all_macs = sum(macs[name] for name in inside)
        rows.append(
            ModuleRow(
                path,
                len(path.split(".")) if path else 0,
                type(module).__name__,
                sum(params[name] for name in inside),
                all_macs,
                all_macs / total,
                params[path],
                macs[path],
            )
        )
    return rows


def group_table(model: nn.Module, image_size: int, in_channels: int | None = None) -> list[GroupRow]:
    """What the groups cost, each one that the model has; errors as `module_table`."""
    params = params_by_group(model)
    modules = dict(model.named_modules())
    macs = dict.fromkeys(get_args(Group), 0)
    for path, count in macs_by_module(to_meta(model).eval(), meta_image(model, image_size, in_channels)).items():
        macs[_group(path, modules[path])] += count
    total = max(sum(macs.values()), 1)
    return [
        GroupRow(group, params[group], macs[group], macs[group] / total)
        for group in get_args(Group)
        if params[group] or macs[group]
    ]


def params_by_group(model: nn.Module) -> dict[Group, int]:
    """Parameters of each group; they add up to `count_params`.

    Patches and tokens are "embedding", position embeddings and relative biases "position", scales of layers "norm" too,
    squeeze-and-excitation "conv", everything behind the last norm "head". "other" is what no rule knows.
    """
    modules = dict(model.named_modules())
    counts: dict[Group, int] = dict.fromkeys(get_args(Group), 0)
    for name, parameter in model.named_parameters():
        counts[_group(name, modules[name.rpartition(".")[0]])] += parameter.numel()
    return counts


# The first rule that fits a part's path decides, its words being whole names in it. Then its type does, then the
# outer path. Names as in this package and in timm.
_BY_NAME: tuple[tuple[Group, str], ...] = (
    ("position", "posemb|pos_embed|bias_table|relative_position_bias_table|rel_pos"),
    ("norm", r"scale\d|ls\d|gamma"),
    ("embedding", "class_token|registers|cls_token|reg_token"),
)
_BY_PLACE: tuple[tuple[Group, str], ...] = (
    ("head", "head|fc|classifier|hidden|representation|attention_pool|attn_pool"),
    ("embedding", "patch_embed"),
    ("conv", "backbone|se|stem|conv|convs"),
    ("attention", "attn"),
    ("mlp", "mlp"),
)


def _group(path: str, module: nn.Module) -> Group:
    """The group of a parameter or module at `path`; `module` is what holds it."""
    for group, words in _BY_NAME:
        if re.search(rf"(^|\.)({words})(\.|$)", path):
            return group
    if "Norm" in type(module).__name__:
        return "norm"
    for group, words in _BY_PLACE:
        if re.search(rf"(^|\.)({words})(\.|$)", path):
            return group
    if isinstance(module, nn.modules.conv._ConvNd):
        return "conv"
    # The identity branch of a CoAtNet transformer block that widens.
    return "attention" if re.search(r"(^|\.)shortcut(\.|$)", path) else "other"


def _own_params(model: nn.Module) -> dict[str, int]:
    """Parameters that each module holds itself, by path; a shared one is counted where it is met first."""
    counts = {path: 0 for path, _ in model.named_modules()}
    for name, parameter in model.named_parameters():
        counts[name.rpartition(".")[0]] += parameter.numel()
    return counts
