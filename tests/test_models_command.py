"""`vitlight models ARCH`: where one architecture's cost lies."""

import json

import pytest

from vitlight.cli import main
from vitlight.cost.memory import estimate_memory
from vitlight.cost.trace import build_on_meta


def test_details_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = "models vit_nano1 --option pool=cls --modules --depth 1 --memory --batch-size 8 --precision bf16-mixed"
    assert main([*arguments.split(), "--optimizer", "sgd", "--checkpointing", "--json"]) == 0
    details = json.loads(capsys.readouterr().out)
    assert (details["arch"], details["image_size"]) == ("vit_nano1", 32)
    assert details["params"] == sum(row["params"] for row in details["groups"]) == 60_264 + 32  # and a class token
    assert [row["module"] for row in details["modules"]][:2] == ["", "patch_embed"]
    assert {row["depth"] for row in details["modules"]} == {0, 1}
    model = build_on_meta("vit_nano1", 32, pool="cls")
    assert details["memory"] == vars(estimate_memory(model, 32, 8, "bf16-mixed", "sgd", activation_checkpointing=True))


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
        ("models vit_nano1 --option pool", "--option='pool' is not of the form key=value"),
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
