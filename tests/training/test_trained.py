"""Loading a trained model: the very logits that `validate` sees, from whatever is named; one line where it can't be."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.reference_libraries import reference
from tests.trained_runs import TINY_VIT, random_model, random_pixels, train_tiny
from vitlight.cli import main
from vitlight.errors import InputError
from vitlight.models.layouts.resize import resize_position_embedding
from vitlight.models.weights import save_weights
from vitlight.training.checkpoint import best_step
from vitlight.training.classifier import ImageClassifier
from vitlight.training.trained import TrainedModel, load_trained


@pytest.fixture(scope="module")
def vit_run(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Evaluates an average of its weights, and keeps its best checkpoint."""
    root = tmp_path_factory.mktemp("vit")
    return train_tiny(tiny_shards, root, "--model.ema_decay=0.8", "--run.keep_best=true", options=TINY_VIT)


@pytest.fixture(scope="module")
def resnet_run(tiny_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("resnet")
    more = ("--model.arch=resnet_nano1", "--data.channels=1", "--data.mean=0.3", "--data.eval_crop=1.0")
    return train_tiny(tiny_shards, root, *more, "--model.loss=sigmoid")


def newest(run: Path) -> Path:
    return max((run / "checkpoints").glob("step-*.ckpt"))


def validated_logits(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[torch.Tensor, dict[str, Any]]:
    """The logits that `vitlight validate` computes, and what it prints."""
    seen: list[torch.Tensor] = []
    compute = ImageClassifier._logits

    def note(self: ImageClassifier, images: torch.Tensor) -> torch.Tensor:
        seen.append(compute(self, images))
        return seen[-1]

    monkeypatch.setattr(ImageClassifier, "_logits", note)
    capsys.readouterr()
    assert main(["validate", f"--ckpt_path={checkpoint}"]) == 0
    return torch.cat(seen), json.loads(capsys.readouterr().out.splitlines()[-1])


def own_logits(trained: TrainedModel) -> tuple[torch.Tensor, int]:
    """Logits of the run's held-out images, and how many of them are right."""
    logits, num_right = [], 0
    for batch in trained.open_data().val_dataloader():
        logits.append(trained.logits(batch["image"]))
        num_right += int(((logits[-1].argmax(1) == batch["label"]) * batch["weight"]).sum())
    return torch.cat(logits), num_right


@pytest.mark.parametrize("which", ["vit_run", "resnet_run"])
def test_logits_are_those_of_validate_bit_for_bit(which, request, monkeypatch, capsys):
    run = request.getfixturevalue(which)
    expected, printed = validated_logits(newest(run), monkeypatch, capsys)
    logits, num_right = own_logits(load_trained(run, which="last"))
    assert torch.equal(logits, expected)
    assert num_right == printed["top1_count"]


def test_a_run_tells_how_its_images_are_prepared(vit_run, resnet_run):
    vit, resnet = load_trained(vit_run, which="last"), load_trained(resnet_run)
    assert (vit.arch, vit.image_size, vit.in_channels, vit.num_classes) == ("vit_nano1", 28, 3, 4)
    assert (vit.mean, vit.std, vit.crop_fraction) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 0.875)
    assert (resnet.mean, resnet.std, resnet.crop_fraction, resnet.loss) == ((0.3,), (0.5,), 1.0, "sigmoid")
    assert (vit.class_names, vit.run, vit.data_settings()["global_batch_size"]) == (None, vit_run, 16)
    digest = newest(vit_run).with_suffix(".digest").read_text()
    assert vit.digest == digest
    name = newest(vit_run).name
    assert vit.source == f"{vit_run}: {name}, 192 samples seen, average of the weights, digest {digest[:12]}"
    assert not vit.network.training


def test_names_of_classes_lie_beside_the_shards(vit_run, tiny_shards, tmp_path):
    shutil.copytree(tiny_shards / "train", tmp_path / "train")
    run = shutil.copytree(vit_run, tmp_path / "run")
    settings = (run / "experiment.yaml").read_text()
    (run / "experiment.yaml").write_text(settings.replace(str(tiny_shards / "train"), str(tmp_path / "train")))
    (tmp_path / "train" / "classes.txt").write_text("a\nb\nc\nd\n")
    assert load_trained(run).class_names == ("a", "b", "c", "d")
    (tmp_path / "train" / "classes.txt").write_text("a\nb\n")
    assert load_trained(run).class_names is None


def test_a_run_directory_is_its_best_checkpoint_or_its_last(vit_run):
    best, last = load_trained(vit_run), load_trained(vit_run, which="last")
    assert f"{16 * best_step(vit_run / 'checkpoints')} samples seen" in best.source
    assert "192 samples seen" in last.source
    checkpoint = load_trained(newest(vit_run))
    for name, tensor in checkpoint.network.state_dict().items():
        assert torch.equal(tensor, last.network.state_dict()[name])


def test_a_folder_that_ranks_wrote_and_a_copied_file_are_the_same_model(vit_run, tmp_path):
    last = load_trained(vit_run, which="last")
    images = random_pixels(2, 3, 28)
    folder = tmp_path / "run" / "checkpoints" / newest(vit_run).name
    folder.mkdir(parents=True)
    shutil.copy(newest(vit_run), folder / "rest.pt")
    shutil.copy(vit_run / "experiment.yaml", tmp_path / "run")
    assert torch.equal(load_trained(folder).logits(images), last.logits(images))
    shutil.copy(newest(vit_run), tmp_path / "model.ckpt")
    shutil.copy(vit_run / "experiment.yaml", tmp_path)
    assert torch.equal(load_trained(tmp_path / "model.ckpt").logits(images), last.logits(images))


def test_loading_leaves_random_numbers_alone(vit_run):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    load_trained(vit_run)
    assert torch.equal(torch.get_rng_state(), before)


def test_another_image_size_resizes_positions_and_says_so(vit_run):
    plain, larger = load_trained(vit_run), load_trained(vit_run, image_size=56)
    assert "at 56 px in place of 28, posemb resized from 7x7 to 14x14" in larger.source
    posemb = plain.network.state_dict()["posemb"]
    assert torch.equal(larger.network.state_dict()["posemb"], resize_position_embedding(posemb, 14 * 14 + 1))
    assert larger.logits(random_pixels(2, 3, 56)).shape == (2, 4)
    assert larger.open_data().image_size == 56
    with pytest.raises(InputError, match=r"image_size=30 is not a multiple of the patch size 4; use 28 or 32"):
        load_trained(vit_run, image_size=30)


@pytest.mark.parametrize(
    ("layout", "suffix"), [("timm", ".safetensors"), ("google", ".npz"), ("huggingface", ".pt"), ("vitlight", ".pt")]
)
def test_weights_of_elsewhere_tell_their_sizes(tmp_path, layout, suffix):
    options = {"depth": 1, "width": 16, "mlp_dim": 32, "num_heads": 2}
    model = random_model("vit_ti16", 7, 48, **options)
    path = tmp_path / f"weights{suffix}"
    save_weights(model, path, layout)
    trained = load_trained(path, arch="vit_ti16", model_options=options)
    assert (trained.image_size, trained.num_classes, trained.in_channels, trained.run) == (48, 7, 3, None)
    assert f"in {layout}'s layout, normalised with mean 0.5 and std 0.5, crop 0.9 (usual for ViTs)" in trained.source
    images = random_pixels(3, 3, 48)
    expected = model((images.float() / 255 - 0.5) / 0.5)
    torch.testing.assert_close(trained.logits(images), expected, rtol=1e-5, atol=1e-6)
    assert trained.data_settings() == {}
    with pytest.raises(InputError, match="weights are of no run"):
        trained.open_data()


def test_relative_biases_of_weights_are_resized(tmp_path):
    model = random_model("coatnet_nano1", 5, 32, in_channels=1)
    save_weights(model, tmp_path / "coatnet.safetensors")
    trained = load_trained(tmp_path / "coatnet.safetensors", arch="coatnet_nano1", image_size=64)
    assert (trained.in_channels, trained.mean, trained.std) == (1, (0.5,), (0.5,))
    assert "at 64 px in place of 32, " in trained.source
    assert " bias tables resized from " in trained.source or "bias_table resized from " in trained.source
    assert trained.logits(random_pixels(2, 1, 64)).shape == (2, 5)


def test_timms_weights_are_prepared_as_timm_says(tmp_path, monkeypatch):
    timm = reference("timm")
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=6).eval()
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    trained = load_trained(tmp_path / "weights.pth", arch="timm:test_resnet")
    config = timm.get_pretrained_cfg("test_resnet")
    assert (trained.mean, trained.std, trained.crop_fraction) == (config.mean, config.std, config.crop_pct)
    assert (trained.num_classes, trained.image_size) == (6, 160)
    images = random_pixels(2, 3, 160)
    torch.testing.assert_close(trained.logits(images), model(trained.normalize(images)), rtol=1e-5, atol=1e-6)

    asked = []

    def fetch(source: str) -> Path:
        asked.append(source)
        return tmp_path / "weights.pth"

    monkeypatch.setattr("vitlight.training.pretrained.fetch_weights", fetch)
    fetched = load_trained("timm:test_resnet.r160_in1k")
    assert (asked, fetched.arch) == (["hf-hub:timm/test_resnet.r160_in1k"], "timm:test_resnet")
    assert "(timm's for test_resnet.r160_in1k at 160 px)" in fetched.source
    assert torch.equal(fetched.logits(images), trained.logits(images))
    with pytest.raises(InputError, match=r"has no weights test_resnet\.none; it has test_resnet\.r160_in1k"):
        load_trained("timm:test_resnet.none")


def test_a_run_whose_checkpoint_lost_its_classifier_is_refused(resnet_run, tmp_path):
    checkpoint = torch.load(newest(resnet_run), weights_only=False)
    lost = {name: value for name, value in checkpoint["state_dict"].items() if ".head." not in name}
    assert len(lost) == len(checkpoint["state_dict"]) - 2
    torch.save({**checkpoint, "state_dict": lost}, tmp_path / "model.ckpt")
    shutil.copy(resnet_run / "experiment.yaml", tmp_path)
    with pytest.raises(InputError, match=r"lack head\.weight, head\.bias, which the model needs"):
        load_trained(tmp_path / "model.ckpt")


def test_what_cannot_be_loaded_gets_one_line(vit_run, tmp_path):
    weights = tmp_path / "weights.safetensors"
    save_weights(random_model("resnet_nano1", 4, 32), weights)
    torn = shutil.copytree(vit_run, tmp_path / "torn")
    with newest(torn).open("ab") as file:
        file.write(b"more")
    empty = shutil.copytree(vit_run, tmp_path / "empty", ignore=shutil.ignore_patterns("*.ckpt"))
    broken = shutil.copytree(vit_run, tmp_path / "broken")
    (broken / "experiment.yaml").write_text("data: 3\n")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"source": tmp_path / "none"}, f"{tmp_path / 'none'} does not exist"),
        ({"source": vit_run.parent}, f"no run directory .* it holds runs; name one of {vit_run.name}"),
        ({"source": empty}, "has no whole checkpoint yet"),
        ({"source": newest(torn)}, r"step-000000012\.ckpt is not whole"),
        ({"source": broken}, "is no experiment of vitlight"),
        ({"source": vit_run, "arch": "vit_s16"}, "arch=vit_s16 is not that of run .*, which has vit_nano1"),
        ({"source": vit_run, "num_classes": 5}, "num_classes=5 is not that of run"),
        ({"source": vit_run, "layout": "timm"}, "layout=timm is not that of run"),
        ({"source": vit_run, "which": "first"}, "which='first' is not one of best, last"),
        ({"source": weights}, r"say its arch \(--arch\)"),
        ({"source": weights, "arch": "resnet_nan"}, "did you mean resnet_nano"),
        ({"source": weights, "arch": "vit_nano1"}, str(weights)),
        ({"source": weights, "arch": "resnet_nano1", "num_classes": 9}, "4 classes and the model num_classes=9"),
    ]
    for arguments, words in cases:
        with pytest.raises(InputError, match=words) as caught:
            load_trained(**arguments)
        assert "\n" not in str(caught.value)


def test_validate_and_test_take_a_run_directory_for_its_best_checkpoint(vit_run, capsys):
    for command in ("validate", "test"):
        capsys.readouterr()
        assert main([command, f"--ckpt_path={vit_run}"]) == 0
        by_run = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert main([command, f"--ckpt_path={vit_run / 'checkpoints' / 'best.ckpt'}"]) == 0
        assert by_run == json.loads(capsys.readouterr().out.splitlines()[-1])
        assert by_run["step"] == best_step(vit_run / "checkpoints")
    assert main(["test", f"--ckpt_path={vit_run.parent / 'none'}", f"--config={vit_run / 'experiment.yaml'}"]) == 2
    assert "does not exist; name a run directory, a checkpoint" in capsys.readouterr().err


def test_the_channels_of_a_hybrid_are_those_of_its_backbone(tmp_path):
    options = {"depth": 1, "width": 16, "mlp_dim": 32, "num_heads": 2}
    save_weights(random_model("vit_r_ti16", 5, 32, in_channels=1, **options), tmp_path / "hybrid.safetensors")
    trained = load_trained(tmp_path / "hybrid.safetensors", arch="vit_r_ti16", model_options=options)
    assert (trained.in_channels, trained.num_classes, trained.image_size) == (1, 5, 32)
