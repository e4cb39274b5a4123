"""`vitlight models ARCH`: where one architecture's cost lies."""

import json

import pytest

from vitlight.cli import main
from vitlight.cost import count_params
from vitlight.cost.memory import estimate_memory
from vitlight.cost.trace import build_on_meta


def test_details_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = "models vit_nano1 --option pool=cls --modules --depth 1 --memory --batch-size 8 --precision bf16-mixed"
    assert main([*arguments.split(), "--optimizer", "sgd", "--checkpointing", "--keep-gradients", "--json"]) == 0
    details = json.loads(capsys.readouterr().out)
    assert (details["arch"], details["image_size"]) == ("vit_nano1", 32)
    assert details["params"] == sum(row["params"] for row in details["groups"]) == 60_264 + 32  # and a class token
    assert [row["module"] for row in details["modules"]][:2] == ["", "patch_embed"]
    assert {row["depth"] for row in details["modules"]} == {0, 1}
    model = build_on_meta("vit_nano1", 32, pool="cls")
    estimate = estimate_memory(model, 32, 8, "bf16-mixed", "sgd", activation_checkpointing=True, keep_gradients=True)
    assert details["memory"] == vars(estimate)


def test_options_are_numbers_where_they_are_written_so(capsys: pytest.CaptureFixture[str]) -> None:
    options = ("num_classes=10", "in_channels=1", "layer_scale=1e-4")
    assert main(["models", "vit_nano1", "--json", *(word for option in options for word in ("--option", option))]) == 0
    model = build_on_meta("vit_nano1", 32, num_classes=10, in_channels=1, layer_scale=0.0001)
    assert (
        json.loads(capsys.readouterr().out)["params"]
        == count_params(model)
        != count_params(build_on_meta("vit_nano1", 32, num_classes=10, in_channels=1))
    )


def test_tables_have_units_and_say_the_convention(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "coatnet_nano1", "--modules", "--memory", "--batch-size", "4", "--device", "cuda"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for part in ("params [M]", "forward [GMACs]", "share of MACs [%]", "training memory [MiB]"):
        assert part in printed
    assert "a FLOP is half a MAC" in printed
    assert "Tensors on cuda at batch size 4, 32, adamw, no activation checkpointing" in printed
    assert "attn Attention" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("models --memory", "--memory is about one architecture"),
        ("models vit_nano1 --memory", "--memory needs --batch-size"),
        ("models --modules", "--modules is about one architecture"),
        ("models --option pool=cls", "--option is about one architecture"),
        ("models vit_nano1 --family vit", "--family=vit chooses from the list of all"),
        ("models vit_nano1 --depth 1", "--depth=1 is about the rows of --modules"),
        ("models vit_nano1 --modules --depth 0", "--depth=0 is not at least 1"),
        ("models vit_nano1 --batch-size 8", "--batch-size is about the estimate of --memory"),
        ("models vit_nano1 --precision 32", "--precision is about the estimate of --memory"),
        ("models vit_nano1 --optimizer sgd", "--optimizer is about the estimate of --memory"),
        ("models vit_nano1 --checkpointing", "--checkpointing is about the estimate of --memory"),
        ("models --device cuda", "--device is about the estimate of --memory"),
        ("models vit_nano1 --option pool", "--option pool is not KEY=VALUE"),
        ("models vit_nano1 --option pool={", "pool='{'"),
        ("models vit_nano1 --option image_size=64", "has an option of its own: --image-size 64"),
        ("models vit_nano1 --option arch=x", "--option arch=x is no setting; ARCH itself names the architecture"),
        ("models vit_nano1 --image-size 99999999999999999999", "is not from 1 to 32768 pixels"),
        ("models bit_r50x1 --memory --batch-size 2147483647 --image-size 32768", "tensor of more than 2**63 bytes"),
        ("models vit_nano1 --option num_classes=x", "num_classes='x' must be a whole number of at least 1"),
        (
            "models vit_nano1 --memory --batch-size 123456789012345678901234",
            "is not a whole number from 1 to 2147483647",
        ),
        (
            "models resnet_nano1 --memory --batch-size 1 --image-size 1",
            "batch_size=1 at image_size=1 leaves a batch norm",
        ),
        ("models vit_nano1 --option pol=cls", "vit_nano1 has no setting 'pol'; did you mean pool?"),
        ("models vit_nano1 --memory --batch-size 1 --precision 8", "precision='8' is not one of"),
        ("models vit_nano9", "arch 'vit_nano9' is unknown"),
    ],
)
def test_what_does_not_fit_is_one_line(arguments: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments.split()) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
