"""Hugging Face `transformers` ViT: the names that its files hold, which are those of `ViTForImageClassification`.

A file says nothing of the epsilon of its norms, which is 1e-12 there by default: `norm_eps=1e-12` gives their logits.
"""

import re
from collections.abc import Collection

from torch import Tensor, nn

from vitlight.errors import InputError
from vitlight.models.layouts.entry import Entry, joined, same
from vitlight.models.vit import ViT
from vitlight.models.vit_config import ViTConfig

__all__ = ["NAME", "canonical", "check_writable", "entries", "recognises"]

NAME = "huggingface"

# transformers 5 names some modules otherwise in memory than in the files it writes and reads.
_IN_MEMORY = re.compile(r"layers\.(\d+)\.(.+)\.(weight|bias)")
_IN_FILES = {
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
_QUERY = re.compile(
    r"(vit\.)?(encoder\.layer\.\d+\.attention\.attention\.query|layers\.\d+\.attention\.q_proj)\.weight"
)


def recognises(names: Collection[str]) -> bool:
    """Whether these names are those of a ViT of transformers, with or without a classifier."""
    return any(_QUERY.fullmatch(name) for name in names)


def canonical(tensors: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """`tensors` under the names that `entries(model)` uses: a bare `ViTModel` has no `vit.`, one in memory other names."""
    return {_in_files(name): tensor for name, tensor in tensors.items()}


def _in_files(name: str) -> str:
    if name.startswith("classifier."):
        return name
    name = name.removeprefix("vit.")
    match = _IN_MEMORY.fullmatch(name)
    if match is not None:
        name = f"encoder.layer.{match[1]}.{_IN_FILES.get(match[2], match[2])}.{match[3]}"
    return f"vit.{name}"


def check_writable(model: nn.Module) -> None:
    """Raises InputError for a model that can be read, but that no classifier of transformers could compute."""
    if isinstance(model, ViT) and model.config.representation_layer:
        raise InputError(
            "layout 'huggingface' can't be written with representation_layer=True: its classifiers have no such layer"
        )


def entries(model: nn.Module) -> list[Entry]:
    """Every tensor of `model` and its names there. Raises InputError where transformers' ViT has no such model."""
    if not isinstance(model, ViT):
        raise InputError(f"layout 'huggingface' has ViT models, and no {type(model).__name__}")
    config = model.config
    _check(config)
    found = [
        same("class_token", "vit.embeddings.cls_token"),
        same("posemb", "vit.embeddings.position_embeddings"),
        *_layer("patch_embed", "vit.embeddings.patch_embeddings.projection"),
    ]
    for i in range(config.depth):
        ours, theirs = f"blocks.{i}", f"vit.encoder.layer.{i}"
        found += _layer(f"{ours}.norm1", f"{theirs}.layernorm_before")
        for kind in ("weight", "bias"):
            names = tuple(f"{theirs}.attention.attention.{name}.{kind}" for name in ("query", "key", "value"))
            found.append(joined(f"{ours}.attn.qkv.{kind}", names))
        found += _layer(f"{ours}.attn.proj", f"{theirs}.attention.output.dense")
        found += _layer(f"{ours}.norm2", f"{theirs}.layernorm_after")
        found += _layer(f"{ours}.mlp.fc1", f"{theirs}.intermediate.dense")
        found += _layer(f"{ours}.mlp.fc2", f"{theirs}.output.dense")
    found += _layer("norm", "vit.layernorm")
    if config.representation_layer:  # of ViTModel, which reads the class token through a tanh layer
        found += _layer("representation", "vit.pooler.dense")
    return found + _layer("head", "classifier")


def _layer(ours: str, theirs: str) -> list[Entry]:
    return [same(f"{ours}.{kind}", f"{theirs}.{kind}") for kind in ("weight", "bias")]


def _check(config: ViTConfig) -> None:
    refused = {
        "backbone": config.backbone is not None,
        "pool": config.pool != "cls",
        "posemb": config.posemb != "learned",
        "posemb_on_class_token": not config.posemb_on_class_token,
        "num_registers": config.num_registers > 0,
        "layer_scale": config.layer_scale is not None,
        "qk_norm": config.qk_norm,
    }
    for option, is_refused in refused.items():
        if is_refused:
            raise InputError(f"layout 'huggingface' has no {option}={getattr(config, option)!r}; use another layout")
