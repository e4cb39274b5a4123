import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.interpolate import RegularGridInterpolator
from torch import Tensor, nn

from tests.models.small_models import VIT, State, bit, coatnet, copied, resnet, same_numbers, vit
from tests.reference_libraries import reference
from vitlight.errors import InputError
from vitlight.models import build_model
from vitlight.models.layouts import LAYOUTS
from vitlight.models.weights import LoadReport, convert_state, find_layout, load_weights, save_weights

Build = Callable[..., nn.Module]
CASES = [
    *((build, layout) for build in (vit, coatnet, bit, resnet) for layout in ("timm", "vitlight")),
    *((build, "google") for build in (vit, bit)),
    (vit, "huggingface"),
]


@pytest.mark.parametrize(("build", "layout"), CASES)
def test_what_is_written_in_a_layout_is_known_for_it_and_read_back_to_the_bit(build: Build, layout: str) -> None:
    written, read = build(seed=0), build(seed=1)
    state = convert_state(written, layout)
    report = load_weights(read, state)
    assert same_numbers(read.state_dict(), written.state_dict())
    num_params = sum(parameter.numel() for parameter in written.parameters())
    assert report == LoadReport(layout, len(state), num_params, resized={}, fresh=(), ignored=())


def dropped(name: str) -> Callable[[State], None]:
    return lambda state: state.__delitem__(name)


def added(name: str) -> Callable[[State], None]:
    return lambda state: state.update({name: torch.zeros(2)})


def replaced(name: str, *shape: int) -> Callable[[State], None]:
    return lambda state: state.update({name: torch.zeros(shape)})


@pytest.mark.parametrize(
    ("build", "layout", "change", "told"),
    [
        (
            vit,
            "timm",
            dropped("blocks.1.norm2.weight"),
            r"lack blocks\.1\.norm2\.weight, which the model needs; see arch",
        ),
        (vit, "timm", added("blocks.1.ls1.gamma"), r"hold blocks\.1\.ls1\.gamma, .* no place for; see layer_scale"),
        (vit, "timm", dropped("cls_token"), r"lack cls_token.*see pool or class_token"),
        (vit, "timm", added("blocks.2.norm1.bias"), r"hold blocks\.2\.norm1\.bias.*see arch"),
        (vit, "timm", added("reg_token"), "reg_token.*num_registers"),
        (vit, "timm", dropped("head.bias"), r"lack head\.bias.*head='fresh'"),
        (
            *(vit, "timm", replaced("blocks.0.attn.qkv.weight", 48, 15)),
            r"blocks\.0\.attn\.qkv\.weight is \(48, 15\) in the weights and \(48, 16\) in the model; is this the arch",
        ),
        (
            *(vit, "google", replaced("head/kernel", 16, 7)),
            r"head/kernel is \(16, 7\) in the weights and \(16, 5\) in the model; the weights have 7 classes and the model "
            r"num_classes=5.*head='fresh'",
        ),
        (
            *(vit, "huggingface", replaced("classifier.weight", 7, 16)),
            "the weights have 7 classes and the model num_classes=5",
        ),
        (vit, "timm", replaced("patch_embed.proj.weight", 16, 1, 16, 16), "1 channels.*in_channels=1, not 3"),
        (vit, "google", replaced("embedding/kernel", 16, 16, 4, 16), "4 channels.*in_channels=4, not 3"),
        (bit, "timm", replaced("stem.conv.weight", 64, 4, 7, 7), "4 channels.*in_channels=4, not 3"),
        (vit, "timm", replaced("pos_embed", 1, 13, 16), "13 rows is no square grid"),
        (vit, "timm", replaced("pos_embed", 1, 4, 16), "position in the model and none in the weights"),
        (vit, "timm", replaced("pos_embed", 1, 5, 8), r"pos_embed is \(1, 5, 8\).*\(1, 5, 16\)"),
        (resnet, "timm", dropped("layer2.0.bn1.running_mean"), r"lack layer2\.0\.bn1\.running_mean"),
        (resnet, "timm", dropped("bn1.num_batches_tracked"), r"lack bn1\.num_batches_tracked"),
        (
            *(coatnet, "timm", replaced("stages.2.blocks.0.attn.rel_pos.relative_position_bias_table", 48, 2)),
            "48 places, which is no square",
        ),
        (coatnet, "vitlight", replaced("stages.2.0.bias_table", 2, 6, 6), r"\(6, 6\) has no middle"),
        (coatnet, "vitlight", replaced("stages.2.0.bias_table", 3, 5, 5), r"bias_table is \(3, 5, 5\).*\(2, 7, 7\)"),
    ],
)
def test_what_does_not_fit_is_named_in_one_line_and_changes_nothing(
    build: Build, layout: str, change: Callable[[State], None], told: str
) -> None:
    model = build(seed=1)
    before = copied(model)
    state = {name: tensor.clone() for name, tensor in convert_state(build(seed=0), layout).items()}
    change(state)
    with pytest.raises(InputError, match=told) as error:
        load_weights(model, state, layout)
    assert "\n" not in str(error.value)
    assert same_numbers(model.state_dict(), before)


@pytest.mark.parametrize(
    ("build", "name", "change", "told"),
    [
        (vit, "head.weight", lambda t: t.to("meta"), "'head.weight', which is on the meta device"),
        (vit, "head.weight", lambda t: t.to_sparse(), "'head.weight', which is a tensor of layout torch.sparse_coo"),
        (vit, "head.weight", lambda t: t.int(), "head.weight is torch.int32 in the weights, and a floating dtype"),
        (vit, "head.bias", lambda t: t.bool(), "head.bias is torch.bool"),
        (vit, "head.bias", lambda t: t.to(torch.complex64), "head.bias is torch.complex64"),
        (resnet, "stem.1.num_batches_tracked", lambda t: t.float(), "is torch.float32 in the weights, and an integer"),
        (resnet, "stem.1.num_batches_tracked", lambda t: t.bool(), "is torch.bool in the weights, and an integer"),
        (
            vit,
            "head.weight",
            lambda t: t[0, 0],
            r"head.weight is \(\) in the weights and \(5, 16\) in the model; is this",
        ),
        (vit, "head.bias", lambda t: t[0], r"head.bias is \(\) in the weights and \(5,\) in the model; is this"),
    ],
)
def test_a_tensor_of_another_kind_is_named_and_changes_nothing(
    build: Build, name: str, change: Callable[[Tensor], Tensor], told: str
) -> None:
    model = build(seed=1)
    before = copied(model)
    state = copied(build(seed=0))
    with pytest.raises(InputError, match=told):
        load_weights(model, state | {name: change(state[name])})
    assert same_numbers(model.state_dict(), before)


def test_a_counter_may_be_any_integer() -> None:
    state = copied(resnet())
    name = "stem.1.num_batches_tracked"
    model = resnet(seed=1)
    load_weights(model, state | {name: state[name].to(torch.int32)})
    assert same_numbers(model.state_dict(), state)


@pytest.mark.filterwarnings("ignore:.*quantized tensor creation functions.*deprecated")
def test_a_quantised_tensor_is_named() -> None:
    state = copied(vit())
    quantised = torch._empty_affine_quantized([5, 16], scale=1.0, zero_point=0, dtype=torch.qint8)
    with pytest.raises(InputError, match=r"'head\.weight', which is quantised \(torch\.qint8\)"):
        load_weights(vit(seed=1), state | {"head.weight": quantised})


def test_the_whole_of_another_arch_is_counted() -> None:
    with pytest.raises(InputError, match=r"hold blocks\.2\.norm1\.weight, .*, blocks\.2\.attn.* and 9 more.*see arch"):
        load_weights(vit(), convert_state(vit(depth=3), "timm"))
    with pytest.raises(InputError, match="and 28 other tensors differ; is this the arch"):
        load_weights(vit(), convert_state(vit(width=24), "vitlight"))


def test_layouts_are_told_apart_and_a_wrong_one_is_refused() -> None:
    model = vit()
    for name in LAYOUTS:
        state = convert_state(model, name)
        assert find_layout(state) is LAYOUTS[name]
        assert find_layout(state, name) is LAYOUTS[name]
        for other in LAYOUTS.keys() - {name}:
            with pytest.raises(InputError, match=f"layout='{other}', but the tensors are named as in layout '{name}'"):
                load_weights(model, state, other)
    with pytest.raises(InputError, match=r"\(w, \.\.\.\) are named as in none of the layouts timm, google"):
        load_weights(model, {"w": torch.zeros(1)})
    with pytest.raises(InputError, match="layout='keras' must be one of 'auto', 'timm'"):
        load_weights(model, convert_state(model, "timm"), "keras")
    with pytest.raises(InputError, match="head='new' must be one of 'load', 'fresh'"):
        load_weights(model, convert_state(model, "timm"), head="new")  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("has_head", [True, False])
def test_a_fresh_head_stays_as_it_was(layout: str, has_head: bool) -> None:
    written, model = vit(num_classes=7), vit(seed=1)
    head = model.get_parameter("head.weight").clone()
    state = convert_state(written, layout)
    if not has_head:
        state = {name: tensor for name, tensor in state.items() if not name.startswith(("head", "classifier"))}
    report = load_weights(model, state, head="fresh")
    assert report.fresh == ("head.weight", "head.bias")
    assert torch.equal(model.get_parameter("head.weight"), head)
    body = {name: tensor for name, tensor in written.state_dict().items() if not name.startswith("head")}
    assert same_numbers({name: tensor for name, tensor in model.state_dict().items() if name in body}, body)


@pytest.mark.parametrize("layout", ["timm", "vitlight"])
@pytest.mark.parametrize("image_size", [32, 128, 160])
def test_bias_tables_are_resized_bilinearly_over_displacements(layout: str, image_size: int) -> None:
    written, model = coatnet(), coatnet(seed=1, image_size=image_size)
    report = load_weights(model, convert_state(written, layout))
    name = "stages.2.1.bias_table"
    table, resized = written.get_parameter(name).detach().numpy(), model.get_parameter(name).detach().numpy()
    side, wanted = table.shape[1], resized.shape[1]
    assert report.resized[name] == ((side, side), (wanted, wanted))
    # Displacements as parts of the largest one, so that -1, 0 and 1 are the same places in both.
    places, wanted_places = np.linspace(-1, 1, side), np.linspace(-1, 1, wanted)
    for before, after in zip(table, resized, strict=True):
        expected = RegularGridInterpolator((places, places), before)(
            tuple(np.meshgrid(*[wanted_places] * 2, indexing="ij"))
        )
        np.testing.assert_allclose(after, expected, atol=1e-6)
        assert after[wanted // 2, wanted // 2] == pytest.approx(before[side // 2, side // 2], abs=1e-6)
        assert after[0, 0] == pytest.approx(before[0, 0], abs=1e-6)


def test_a_resized_position_embedding_keeps_the_class_row_and_a_constant() -> None:
    written, model = vit(image_size=96), vit(seed=1, image_size=48)
    with torch.no_grad():
        written.get_parameter("posemb")[:, 1:] = 0.25
    report = load_weights(model, convert_state(written, "google"))
    assert report.resized == {"posemb": ((6, 6), (3, 3))}
    posemb = model.get_parameter("posemb")
    assert torch.equal(posemb[:, 0], written.get_parameter("posemb")[:, 0])
    assert torch.allclose(posemb[:, 1:], torch.tensor(0.25), atol=1e-6)


def test_a_fixed_position_embedding_is_written_for_timm_and_checked_when_read() -> None:
    options = {"pool": "gap", "posemb": "sincos2d"}
    written, model = vit(**options), vit(seed=1, image_size=64, **options)
    state = convert_state(written, "timm")
    assert state["pos_embed"].shape == (1, 4, 16)
    load_weights(model, state)
    assert torch.equal(model.get_parameter("blocks.1.mlp.fc1.weight"), written.get_parameter("blocks.1.mlp.fc1.weight"))
    with pytest.raises(InputError, match="pos_embed holds a learned position embedding, and posemb='sincos2d'"):
        load_weights(model, state | {"pos_embed": state["pos_embed"] + 0.5})


def test_weights_are_cast_to_the_dtype_of_the_model(tmp_path: Path) -> None:
    written, model = vit().bfloat16(), vit(seed=1)
    save_weights(written, tmp_path / "w.safetensors", "huggingface")
    load_weights(model, tmp_path / "w.safetensors")
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert same_numbers(model.state_dict(), {name: t.float() for name, t in written.state_dict().items()})


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (
            lambda: build_model("resnet_nano1"),
            "stem='small' has no counterpart in layout='timm', which has only the 7x7 stem",
        ),
        (lambda: build_model("coatnet_nano1"), "strides|widths"),
        (lambda: coatnet(shortcut_projection="always"), "shortcut_projection='always'"),
        (lambda: coatnet(norm_position="before_pool"), "norm_position='before_pool'"),
        (lambda: bit(num_groups=16), "num_groups=16"),
        (lambda: vit(num_registers=2), "posemb_on_class_token=True"),
        (lambda: vit(representation_layer=True), "representation_layer=True: timm 1.0.31 has no such layer"),
    ],
)
def test_what_timm_can_not_express_is_named(model: Callable[[], nn.Module], told: str) -> None:
    with pytest.raises(InputError, match=told):
        convert_state(model(), "timm")


@pytest.mark.parametrize(("name", "head"), [("convnext_atto", "head.fc."), ("efficientnet_b0", "classifier.")])
def test_a_timm_model_has_timms_names_and_its_own_head(name: str, head: str) -> None:
    timm = reference("timm")
    written = timm.create_model(name, num_classes=7)
    model = build_model(f"timm:{name}", num_classes=5, image_size=32)
    state = {key: tensor.clone() for key, tensor in written.state_dict().items()}
    with pytest.raises(InputError, match=f"{re.escape(head)}weight is .* the weights have 7 classes"):
        load_weights(model, state)
    report = load_weights(model, state, head="fresh")
    assert (report.layout, report.fresh) == ("timm", (f"network.{head}weight", f"network.{head}bias"))
    body = {key: tensor for key, tensor in state.items() if not key.startswith(head)}
    assert same_numbers({key: t for key, t in convert_state(model, "timm").items() if key in body}, body)
    again = build_model(f"timm:{name}", num_classes=5, image_size=32)
    assert load_weights(again, model.state_dict()).layout == "vitlight"
    assert same_numbers(again.state_dict(), model.state_dict())


def test_a_timm_model_is_not_resized() -> None:
    reference("timm")
    options = {"embed_dim": 32, "depth": 1, "num_heads": 2}
    small, large = (
        build_model("timm:vit_tiny_patch16_224", num_classes=5, image_size=size, options=options) for size in (32, 48)
    )
    with pytest.raises(InputError, match=r"pos_embed is \(1, 5, 32\).*a timm: model is not resized"):
        load_weights(large, small.state_dict())


def test_an_old_representation_layer_of_timm_is_read() -> None:
    model, read = vit(representation_layer=True), vit(seed=1, representation_layer=True)
    old = convert_state(vit(), "timm")
    old |= {f"pre_logits.fc.{leaf}": model.state_dict()[f"representation.{leaf}"] for leaf in ("weight", "bias")}
    load_weights(read, old)
    assert torch.equal(read.state_dict()["representation.weight"], old["pre_logits.fc.weight"])


def test_a_model_on_the_meta_device_is_refused() -> None:
    with torch.device("meta"):
        model = build_model("vit_s16", **VIT)
    with pytest.raises(InputError, match="the model is on the meta device"):
        load_weights(model, vit().state_dict())


def test_old_indices_beside_timms_bias_tables_are_ignored() -> None:
    state = convert_state(coatnet(), "timm")
    index = "stages.2.blocks.0.attn.rel_pos.relative_position_index"
    assert load_weights(coatnet(seed=1), state | {index: torch.zeros(16)}).ignored == (index,)
