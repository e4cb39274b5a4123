"""A run that starts from weights: read once, named by their content, not needed again."""

import shutil
from hashlib import blake2b
from pathlib import Path

import pytest
import torch
import yaml

from tests.training.test_run import assert_bit_equal, final_state
from vitlight.cli import main
from vitlight.errors import InputError
from vitlight.models import build_model
from vitlight.models.weights import save_weights
from vitlight.training import pretrained
from vitlight.training.experiment import ExperimentCLI
from vitlight.training.record import RunDirectory
from vitlight.training.resolve import resolve_run


def save_model(path: Path, image_size: int = 28, num_classes: int = 4) -> Path:
    """A ViT as `fit_args` trains it, with learned position embeddings, all of it random."""
    model = build_model("vit_nano1", num_classes=num_classes, image_size=image_size, posemb="learned")
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.1, generator=generator)
    save_weights(model, path, "vitlight")
    return path


@pytest.fixture
def weights(tmp_path):
    return save_model(tmp_path / "start.safetensors")


@pytest.fixture
def args(fit_args, weights):
    """Three steps too small to move a weight by a bit."""
    still = ["--model.optimizer.lr=1.0e-30", "--model.duration.samples=48", "--data.val_fraction=0"]
    return [*fit_args, *still, "--model.model_options={posemb: learned}", f"--model.weights={weights}"]


def network_state(args: list[str]) -> dict[str, torch.Tensor]:
    state = final_state(RunDirectory(resolve_run(args).run_dir))["state_dict"]
    return {name.removeprefix("model."): value for name, value in state.items()}


def test_a_run_starts_from_the_weights(args, weights, capsys):
    assert main(args) == 0
    assert f"{weights}: " in capsys.readouterr().err
    model = build_model("vit_nano1", num_classes=4, image_size=28, posemb="learned")
    reference = pretrained.load_weights(model, weights)
    assert reference.fresh == ()
    assert_bit_equal(network_state(args), dict(model.state_dict()))
    run = RunDirectory(resolve_run(args).run_dir)
    recorded = yaml.safe_load(run.experiment_path.read_text())["model"]["weights_digest"]
    assert run.read_result()["weights_digest"] == recorded == blake2b(weights.read_bytes()).hexdigest()[:32]


def test_weights_of_another_size_and_other_classes_are_fitted(fit_args, args, tmp_path, capsys):
    other = save_model(tmp_path / "other.safetensors", image_size=56, num_classes=9)
    args = [*args, f"--model.weights={other}"]
    assert main([*args, f"--run.root={tmp_path / 'misfit'}"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"vitlight: error: model.weights={other}: head.weight is (9, 32)")
    assert "model.weights_head" in error
    args.append("--model.weights_head=fresh")
    assert main(args) == 0
    assert "posemb resized from" in capsys.readouterr().err
    state = network_state(args)
    assert state["posemb"].shape == (1, 49, 32)
    assert state["head.weight"].abs().max() < 1e-25  # a fresh classifier starts at zero


def test_the_content_names_the_run_and_the_path_does_not(fit_args, args, weights, tmp_path):
    moved = Path(shutil.copy(weights, tmp_path / "moved.safetensors"))
    other = save_model(tmp_path / "other.safetensors", num_classes=5)
    plain = [arg for arg in args if "weights" not in arg]
    run_id = resolve_run(args).run_id
    assert resolve_run([*args, f"--model.weights={moved}"]).run_id == run_id
    changes = [[f"--model.weights={other}"], ["--model.weights_head=fresh"], ["--model.weights_layout=timm"]]
    ids = [run_id, resolve_run(plain).run_id, *(resolve_run([*args, *change]).run_id for change in changes)]
    assert len(set(ids)) == 5


def test_a_resume_needs_the_file_no_more(args, weights, tmp_path, capfd):
    assert main([*args, "--run.checkpoint_every_steps=1"]) == 0
    run = RunDirectory(resolve_run(args).run_dir)
    whole = final_state(run)
    weights.unlink()
    for again in (args, ["fit", f"--config={run.experiment_path}"]):
        max(run.checkpoints.glob("*.ckpt")).unlink()
        run.result_path.unlink()
        capfd.readouterr()
        assert main([*again, "--run.checkpoint_every_steps=1"]) == 0
        assert "resumes at step 2 of 3" in capfd.readouterr().err
        assert_bit_equal(final_state(run)["state_dict"], whole["state_dict"])
    assert [path.name for path in run.path.parent.iterdir()] == [run.path.name]
    shutil.rmtree(run.checkpoints)
    run.result_path.unlink()
    assert main(args) == 2  # it would have to start anew
    assert f"model.weights={weights} is not a file" in capfd.readouterr().err
    assert not run.result_path.exists()


def test_a_missing_file_is_one_line_before_anything_starts(fit_args, tmp_path, capsys):
    args = [*fit_args, f"--model.weights={tmp_path / 'none.npz'}"]
    with pytest.raises(InputError, match=r"model\.weights=.*none\.npz is not a file") as caught:
        resolve_run(args)
    assert "\n" not in str(caught.value)
    assert main(args) == 2
    assert not (tmp_path / "runs").exists()


def test_weights_that_were_pinned_and_changed_are_refused(args, weights):
    pinned = [*args, "--model.weights_digest=0123456789abcdef0123456789abcdef"]
    with pytest.raises(InputError, match=r"has digest [0-9a-f]{32}, not model\.weights_digest=0123456789abcdef"):
        resolve_run(pinned)


@pytest.mark.parametrize("setting", ["weights_head=fresh", "weights_layout=timm", "weights_digest=00"])
def test_a_setting_of_weights_without_weights_is_refused(fit_args, setting):
    with pytest.raises(InputError, match=rf"model\.{setting} has no meaning without model\.weights"):
        ExperimentCLI([*fit_args, f"--model.{setting}"]).build_model()


def test_a_name_on_a_hub_is_fetched_and_a_url_shows_no_password(args, weights, monkeypatch):
    asked = []
    monkeypatch.setattr(pretrained, "fetch_weights", lambda source: asked.append(source) or weights)
    run = resolve_run([*args, "--model.weights=hf-hub:org/name"])
    assert run.run_id == resolve_run(args).run_id
    assert asked == ["hf-hub:org/name"]
    url = "https://user:secret@host/x.safetensors"
    with pytest.raises(InputError, match="has digest") as caught:
        resolve_run([*args, f"--model.weights={url}", "--model.weights_digest=00"])
    assert "secret" not in str(caught.value)
