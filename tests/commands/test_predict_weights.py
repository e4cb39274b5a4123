"""`vitlight predict` with weights of no run: class names of the command line, weights with no classes, and the device."""

import pytest
import torch

from tests.commands.test_predict import NAMES, predict, read_csv
from tests.trained_runs import random_model
from vitlight.models.weight_files import write_state
from vitlight.prediction import predict as predict_module
from vitlight.prediction.output import PredictionFile

TINY = {"depth": 1, "width": 16, "mlp_dim": 32, "num_heads": 2}
OPTIONS = ("--arch=vit_ti16", *(f"--option={name}={value}" for name, value in TINY.items()))


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    return random_model("vit_ti16", 4, 32, **TINY).state_dict()


def test_a_cut_off_command_with_other_class_names_is_refused(state, tiny_shards, tmp_path, monkeypatch, capsys):
    source, output, partial = (tmp_path / name for name in ("weights.pt", "out.csv", "out.csv.partial"))
    write_state(state, source)
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    (tmp_path / "others.txt").write_text("\n".join(reversed(NAMES)))

    def predict_with(names: str, code: int = 0) -> None:
        given = (tiny_shards / "test", "--batch-size=8", "--output", output, f"--class-names={tmp_path / names}")
        predict(source, *OPTIONS, *given, code=code)

    write = PredictionFile.write

    def cut_off(self, predictions):
        write(self, predictions)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PredictionFile, "write", cut_off)
        predict_with("names.txt", code=130)
    before = partial.read_text()
    predict_with("others.txt", code=2)
    assert f"{partial} is what is left of another command (model, images, class names or" in capsys.readouterr().err
    assert partial.read_text() == before
    predict_with("names.txt")
    assert "goes on after 8 images" in capsys.readouterr().err
    rows = read_csv(output)
    assert (len(rows), {row["name_1"] == NAMES[int(row["class_1"])] for row in rows}) == (61, {True})


def test_weights_without_a_classifier_are_not_predicted_with(state, tiny_shards, tmp_path, capsys):
    source, output = tmp_path / "weights.pt", tmp_path / "out.csv"
    write_state({name: value for name, value in state.items() if not name.startswith("head.")}, source)
    predict(source, *OPTIONS, tiny_shards / "test", "--output", output, code=2)
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"vitlight: error: {source}: vit_ti16 in vitlight's layout: these weights have no classifier; `vitlight probe` "
        "measures their features, and `vitlight fit --model.weights=... --model.weights_head=fresh` trains one on them"
    )
    assert [each.name for each in tmp_path.iterdir()] == ["weights.pt"]


@pytest.mark.parametrize(("is_there", "kind"), [(True, "cuda"), (False, "cpu")])
def test_an_accelerator_that_torch_was_built_for_may_be_absent(monkeypatch, is_there, kind):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: is_there)
    assert predict_module.choose_device("auto") == torch.device(kind)
