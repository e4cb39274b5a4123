"""What defines a ViT or a hybrid, and the sizes of the papers by name."""

import re
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

from vitlight.errors import InputError
from vitlight.models.hybrid import HYBRIDS, HybridStem
from vitlight.models.layers import Gelu, check_above_zero, check_choice, check_positive, check_rate, check_switch

__all__ = ["LADDER", "PUBLISHED", "SIZES", "NormPosition", "Pool", "PositionEmbedding", "ViTConfig", "resolve"]

Pool = Literal["cls", "gap", "map"]
PositionEmbedding = Literal["learned", "sincos2d", "none"]
NormPosition = Literal["before_pool", "after_pool"]


@dataclass(frozen=True)
class ViTConfig:
    """Everything that defines a ViT.

    `class_token`: None gives one exactly where `pool` is "cls". Beside the other pools it takes part in attention only,
        as the registers always do: they pool over the patches.
    `posemb_grid`: patches along one side over which the coordinates of "sincos2d" run, for images of another size than the
        network was trained at: those between are taken, where None goes on beyond the last one.
    `posemb_on_class_token`: False leaves the class token's row out of a learned table. Registers never have positions.
    `norm_position`: "after_pool" norms the pooled vector in place of the tokens.
    `layer_scale`: where a learned scale of each channel of a branch starts (CaiT, arXiv 2103.17239); None for no scale.
    `qk_norm`: LayerNorm over queries and keys, head by head (ViT-22B, arXiv 2302.05442).
    `fp32_softmax`: the blocks' attention weights are computed in float32 whatever the precision of the rest.
    `backbone`: a hybrid's ResNet; `patch_size` is then in pixels of its feature map. `backbone_norm_eps` is its
        GroupNorms' (flax's default, with which the published weights were trained; timm has 1e-5).
    """

    width: int
    depth: int
    num_heads: int
    mlp_dim: int
    patch_size: int = 16
    image_size: int = 224
    in_channels: int = 3
    num_classes: int = 1000
    pool: Pool = "cls"
    posemb: PositionEmbedding = "learned"
    class_token: bool | None = None
    posemb_on_class_token: bool = True
    num_registers: int = 0
    norm_position: NormPosition = "before_pool"
    norm_eps: float = 1e-6
    layer_scale: float | None = None
    qk_norm: bool = False
    fp32_softmax: bool = False
    gelu: Gelu = "exact"
    representation_layer: bool = False
    dropout_rate: float = 0.0
    drop_path_rate: float = 0.0
    backbone: HybridStem | None = None
    backbone_norm_eps: float = 1e-6
    posemb_grid: int | None = None

    def __post_init__(self) -> None:
        check_positive(width=self.width, depth=self.depth, num_heads=self.num_heads, mlp_dim=self.mlp_dim)
        check_positive(patch_size=self.patch_size, image_size=self.image_size)
        check_positive(in_channels=self.in_channels, num_classes=self.num_classes)
        check_rate(dropout_rate=self.dropout_rate, drop_path_rate=self.drop_path_rate)
        check_choice(get_args(Pool), pool=self.pool)
        check_choice(get_args(PositionEmbedding), posemb=self.posemb)
        check_choice(get_args(NormPosition), norm_position=self.norm_position)
        check_choice(get_args(Gelu), gelu=self.gelu)
        check_switch(posemb_on_class_token=self.posemb_on_class_token, representation_layer=self.representation_layer)
        check_switch(qk_norm=self.qk_norm, fp32_softmax=self.fp32_softmax)
        if self.class_token is not None and not isinstance(self.class_token, bool):
            raise InputError(f"class_token={self.class_token!r} must be true, false or null")
        if not isinstance(self.num_registers, int) or isinstance(self.num_registers, bool) or self.num_registers < 0:
            raise InputError(f"num_registers={self.num_registers!r} must be a whole number of at least 0")
        check_above_zero(norm_eps=self.norm_eps, backbone_norm_eps=self.backbone_norm_eps)
        if self.layer_scale is not None:
            check_above_zero(layer_scale=self.layer_scale)
        if self.backbone is not None and not isinstance(self.backbone, HybridStem):
            raise InputError(f"backbone={self.backbone!r} must be a HybridStem or None")
        if self.pool == "cls" and self.class_token is False:
            raise InputError("class_token=False leaves pool='cls' nothing to pool; use pool='gap' or 'map'")
        if self.image_size % self.stride:
            below = self.image_size // self.stride * self.stride
            near = f"{below} or {below + self.stride}" if below else f"{self.stride}"
            step = "patch size" if self.backbone is None else "hybrid's total stride"
            raise InputError(f"image_size={self.image_size} is not a multiple of the {step} {self.stride}; use {near}")
        if self.width % self.num_heads:
            raise InputError(f"width={self.width} is not a multiple of num_heads={self.num_heads}")
        if self.posemb_grid is not None:
            check_positive(posemb_grid=self.posemb_grid)
            if self.posemb != "sincos2d":
                raise InputError(f"posemb_grid={self.posemb_grid} is read with posemb='sincos2d' alone; leave it out")
        if self.posemb == "sincos2d" and self.width % 4:
            raise InputError(f"posemb='sincos2d' needs a width that is a multiple of 4, not {self.width}")

    @property
    def stride(self) -> int:
        """Pixels of the image along one side of a token's patch."""
        return self.patch_size * (self.backbone.stride if self.backbone else 1)

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.stride

    @property
    def has_class_token(self) -> bool:
        return self.pool == "cls" if self.class_token is None else self.class_token

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens that stand before the patches: class token, then registers."""
        return self.has_class_token + self.num_registers


class ViTSize(NamedTuple):
    width: int
    depth: int
    num_heads: int
    mlp_dim: int


# ti s b l h: ViT and AugReg (2106.10270) Table 1; m: DeiT III (2204.07118); so150m so400m: SoViT (2305.13035);
# giant (g) gigantic (G) and xs (there "s"): Scaling ViT (2106.04560) Table 2; e: PaLI (2209.06794).
SIZES = {
    "xs": ViTSize(256, 6, 8, 1024),
    "ti": ViTSize(192, 12, 3, 768),
    "s": ViTSize(384, 12, 6, 1536),
    "m": ViTSize(512, 12, 8, 2048),
    "b": ViTSize(768, 12, 12, 3072),
    "so150m": ViTSize(880, 18, 16, 2320),
    "l": ViTSize(1024, 24, 16, 4096),
    "so400m": ViTSize(1152, 27, 16, 4304),
    "h": ViTSize(1280, 32, 16, 5120),
    "giant": ViTSize(1408, 40, 16, 6144),
    "gigantic": ViTSize(1664, 48, 16, 8192),
    "e": ViTSize(1792, 56, 16, 15360),
}

# The size and patch pairs that a paper reports; any other patch size can be built by name too.
PUBLISHED = (
    *("vit_xs28", "vit_xs16", "vit_ti16", "vit_s32", "vit_s16", "vit_s8", "vit_m16"),
    *("vit_b32", "vit_b28", "vit_b16", "vit_b8", "vit_so150m14", "vit_l32", "vit_l16", "vit_so400m14"),
    *("vit_h14", "vit_giant14", "vit_gigantic14", "vit_e14"),
    *HYBRIDS,
)

# Small images, 28 to 64 px: about 2.5, 10, 40 and 160 million MACs at 32 px, matched with the other families' ladders.
LADDER = {
    name: ViTConfig(*size, patch_size=4, image_size=32, pool="gap", posemb="sincos2d")
    for name, size in {
        "vit_nano1": ViTSize(32, 3, 2, 64),
        "vit_nano2": ViTSize(64, 3, 2, 192),
        "vit_nano3": ViTSize(96, 5, 3, 384),
        "vit_nano4": ViTSize(160, 8, 5, 640),
    }.items()
}


def resolve(arch: str) -> ViTConfig | None:
    """The config of `vit_<size><patch>`, a hybrid's or a ladder's name; None where `arch` is none of them."""
    if arch in LADDER:
        return LADDER[arch]
    if arch in HYBRIDS:
        hybrid = HYBRIDS[arch]
        return ViTConfig(*SIZES[hybrid.size], patch_size=hybrid.patch_size, backbone=hybrid.stem)
    match = re.fullmatch(r"vit_([a-z0-9]*[a-z])([1-9][0-9]*)", arch)
    if match is None or match[1] not in SIZES:
        return None
    patch_size = int(match[2])
    default = ViTConfig(*SIZES[match[1]])
    # An image size the patch divides, so that the config is valid before the caller's image_size is known.
    return replace(default, patch_size=patch_size, image_size=max(224 // patch_size, 1) * patch_size)
