from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT
from vitlight.errors import InputError
from vitlight.training.experiment import ExperimentCLI, _parsers
from vitlight.training.resolve import resolve_run


def test_a_run_is_resolved_without_training(fit_args):
    run = resolve_run(fit_args)
    assert run.arch == "vit_nano1"
    assert run.num_train_samples == 160  # 200 less the fifth held out
    assert run.steps == 12
    assert run.horizon_samples == 192
    assert run.train_flops == 6 * run.forward_macs * 192
    assert run.run_dir.parts[-2:] == ("tiny", run.run_id)
    assert not run.run_dir.exists()


def test_the_run_id_names_the_result_and_nothing_else(fit_args, tiny_shards, tmp_path):
    run_id = resolve_run(fit_args).run_id
    moved = tmp_path / "moved"
    moved.mkdir()
    for tar in (tiny_shards / "train").glob("*.tar"):
        (moved / tar.name).write_bytes(tar.read_bytes())
    same = [
        f"--data.train={moved}",
        "--trainer.accumulate_grad_batches=4",
        "--data.num_workers=3",
        "--data.eval_batch_size=7",
        "--run.root=/elsewhere",
        "--run.num_evaluations=1",
        "--model.compile=true",
        "--model.memory_format=contiguous",
        "--model.activation_checkpointing=true",
    ]
    for change in same:
        assert resolve_run([*fit_args, change]).run_id == run_id, change
    other = [
        "--seed_everything=1",
        "--model.arch=vit_nano2",
        "--model.optimizer.lr=0.002",
        "--model.duration.samples=208",
        "--data.num_train_samples=100",
        "--data.global_batch_size=32",
        "--data.augmentation.flip=false",
        "--trainer.gradient_clip_val=0.5",
        f"--data.train={tiny_shards / 'test'}",
    ]
    ids = {resolve_run([*fit_args, change]).run_id for change in other}
    assert len(ids) == len(other)
    assert run_id not in ids


def test_the_recorded_config_gives_the_same_run(fit_args, tmp_path):
    path = tmp_path / "experiment.yaml"
    path.write_text(ExperimentCLI(fit_args).dump())
    assert resolve_run(["fit", f"--config={path}"]) == resolve_run(fit_args)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("--model.arhc=vit_s16", r"unknown setting model\.arhc; did you mean model\.arch"),
        ("--model.arc=vit_s16", r"unknown setting model\.arc; did you mean model\.arch"),
        ("--model.arch=vit_nan1", r"'?vit_nan1'?.*did you mean vit_nano1"),
        ("--data.globl_batch_size=3", r"data\.globl_batch_size; did you mean data\.global_batch_size"),
        ("--trainer.max_epochs=3", r"trainer\.max_epochs is derived .* use model\.duration\.epochs"),
        ("--trainer.max_epoch=3", r"trainer\.max_epoch"),
        ("--model.optimizer.lr=fast", r"model\.optimizer\.lr"),
        ("--model.optimizer.lr=-1", r"model\.optimizer\.lr=-1\.0 is not a finite number from 0 up"),
        ("--model.optimizer.beta2=1", r"model\.optimizer\.beta2=1\.0 is not in \[0, 1\)"),
        ("--data.augmentation.min_area=0", r"data\.augmentation\.min_area=0\.0 is not in \(0, 1\]"),
        ("--model.optimizer.rl=1", r"model\.optimizer\.rl; did you mean model\.optimizer\.lr"),
        ("--model.duration.epochs=1", "has epochs, samples set"),
        ("--data.train=/no/such/folder", "/no/such/folder"),
        ("--data.num_classes=3", r"label 3, but data\.num_classes=3 allows 0 to 2"),
        ("--data.num_train_samples=161", r"data\.num_train_samples=161 asks for 161 .* there are 160"),
        ("--data.num_train_samples=0", r"data\.num_train_samples=0 asks for 0 images"),
        ("--data.train_fraction=0.001", r"data\.train_fraction=0\.001 asks for 0 images"),
        ("--data.image_size=30", "30"),
        ("--data.val_fraction=-0.1", r"data\.val_fraction=-0\.1"),
        ("--data.channels=2", r"data\.channels=2"),
        ("--model.label_smoothing=a", r"model\.label_smoothing"),
        ("--model.label_smoothing=1", r"model\.label_smoothing=1\.0 is not in \[0, 1\)"),
        ("--model.weights_head=fresh", r"model\.weights_head=fresh has no meaning without model\.weights"),
        ("--model.optimizer.momentum=0.9", r"momentum=0\.9 is not read by model\.optimizer\.name=adamw"),
        ("--model.optimizer.name=adam", r"model\.optimizer\.name"),
        ("--model.schedule.gamma=0.2", r"gamma=0\.2 is not read by model\.schedule\.name=cosine; set it to 0\.1"),
        ("--model.schedule.name=wsd", r"model\.schedule\.name=wsd needs model\.schedule\.cooldown_samples or"),
        ("--seed_everything=-1", r"seed_everything=-1 is not a number from 0 to 4294967295"),
        ("--seed_everything=4294967296", r"seed_everything=4294967296 is not a number from 0 to 4294967295"),
        ("--run.name=../up", r"run\.name='\.\./up'"),
        ("--run.log_every_steps=0", r"run\.log_every_steps=0"),
        ("--config=/no/such.yaml", r"/no/such\.yaml"),
    ],
)
def test_bad_input_is_one_line_with_value_rule_and_setting(fit_args, change, message):
    with pytest.raises(InputError, match=message) as caught:
        resolve_run([*fit_args, change])
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 420


@pytest.mark.parametrize("name", ["image_size", "num_classes", "in_channels"])
def test_model_options_that_follow_from_the_data_are_refused(fit_args, name):
    with pytest.raises(InputError, match=rf"model.model_options has {name}, which follows from data\.\w+; set that"):
        resolve_run([*fit_args, f"--model.model_options={{{name}: 8}}"])


def test_model_options_are_checked(fit_args):
    with pytest.raises(InputError, match="drop_path_rte"):
        resolve_run([*fit_args, "--model.model_options={drop_path_rte: 0.1}"])


def experiments() -> list[Path]:
    return sorted(path for path in (ROOT / "experiments").glob("*.yaml") if path.name != "base.yaml")


@pytest.mark.parametrize("path", experiments(), ids=lambda path: path.stem)
def test_every_experiment_parses_and_is_a_delta_with_a_note(path, tiny_shards):
    base = ROOT / "experiments" / "base.yaml"
    text = path.read_text()
    assert text.startswith("# "), "an experiment opens with its lab note"
    assert "vitlight fit --config experiments/base.yaml" in text
    # wsd.yaml stands over any that names its data.
    whole = [] if "\n  train: " in text else [f"--config={base.with_name('fashion_mnist.yaml')}"]
    args = ["fit", f"--config={base}", *whole, f"--config={path}"]
    cli = ExperimentCLI(args if "arch:" in text else [*args, "--model.arch=vit_s16"])
    assert cli.build_model_settings()["duration"].num_steps(1_000_000, cli.settings.data.global_batch_size, 10**9) >= 1

    def leaves(tree, prefix=""):
        for name, value in tree.items():
            if isinstance(value, dict):
                yield from leaves(value, f"{prefix}{name}.")
            else:
                yield f"{prefix}{name}", value

    inherited = dict(leaves(yaml.safe_load(base.read_text())))
    repeated = [name for name, value in leaves(yaml.safe_load(text)) if name in inherited and inherited[name] == value]
    assert repeated == [], "a delta holds only what differs from base.yaml"


def test_every_setting_of_ours_has_a_help_line():
    _, parsers, _ = _parsers()
    groups = ("model.", "data.", "run.")
    ours = [action for action in parsers["fit"]._actions if action.dest.startswith(groups)]
    assert len(ours) > 40
    missing = [action.dest for action in ours if not str(action.help or "").strip(". ")]
    grouped = {"model.duration", "model.optimizer", "model.schedule", "data.augmentation"}  # --model.duration CONFIG
    assert set(missing) <= grouped
