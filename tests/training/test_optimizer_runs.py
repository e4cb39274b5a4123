"""Each optimizer, schedule and loss trains through `fit`, at the rates it was told, and resumes bit by bit."""

import pytest

from tests.training.test_run import assert_bit_equal, final_state, rows_without_times
from vitlight.cli import main
from vitlight.training.experiment import ExperimentCLI
from vitlight.training.record import RunDirectory
from vitlight.training.resolve import resolve_run

SETTINGS = {
    "adamw, wsd": {
        "optimizer": {"lr": 3e-3, "momentum_dtype": "bfloat16", "layer_decay": 0.8},
        "schedule": {"name": "wsd", "cooldown_fraction": 0.3, "cooldown_shape": "sqrt"},
        "loss": "softmax",
    },
    "sgd, steps": {
        "optimizer": {"name": "sgd", "lr": 0.1, "nesterov": True, "decay": "all", "adaptive_clip": 0.1},
        "schedule": {"name": "steps", "milestones": [0.5, 0.8]},
        "loss": "softmax",
    },
    "lamb, linear": {
        "optimizer": {"name": "lamb", "lr": 0.1},
        "schedule": {"name": "linear", "final_fraction": 0.1},
        "loss": "sigmoid_mean",
    },
    "adafactor, rsqrt": {
        "optimizer": {"name": "adafactor", "lr": 3e-3, "momentum_dtype": "bfloat16", "head_weight_decay": 3.0},
        "schedule": {"name": "rsqrt", "timescale_samples": 160, "cooldown_samples": 80},
        "loss": "sigmoid",
    },
}


@pytest.mark.parametrize(
    ("name", "precision"), [*((name, "32-true") for name in SETTINGS), ("adamw, wsd", "bf16-mixed")]
)
def test_training_lowers_the_loss_and_resumes_bit_by_bit(name, precision, fit_args):
    settings = SETTINGS[name]
    args = [*fit_args, f"--trainer.precision={precision}", "--model.duration.samples=320", "--data.val_fraction=0"]
    args += ["--data.num_train_samples=16", "--data.augmentation.flip=false", "--data.augmentation.min_area=1"]
    args += [
        f"--model.{group}.{name}={value}"
        for group in ("optimizer", "schedule")
        for name, value in settings[group].items()
    ]
    args += [f"--model.loss={settings['loss']}"]
    if settings["loss"] != "softmax":
        args += ["--model.head_bias_init=-1.1", "--model.label_smoothing=0.01"]
    assert main(args) == 0
    run = RunDirectory(resolve_run(args).run_dir)
    rows, state = rows_without_times(run), final_state(run)
    trained = [row for row in rows if row["event"] == "train"]
    assert trained[-1]["train/loss"] < 0.9 * trained[0]["train/loss"]
    model = ExperimentCLI(args).build_model_settings()
    for row in trained:
        factor = model["schedule"].factor(16 * (row["step"] - 0.5), 320)
        assert row["train/learning_rate"] == pytest.approx(model["optimizer"].lr * factor)

    run.result_path.unlink()
    newest = max(run.checkpoints.glob("*.ckpt"))
    assert newest.name == "step-000000020.ckpt"
    newest.unlink()
    assert main(args) == 0
    resumed = final_state(run)
    for key in ("state_dict", "optimizer_states", "global_step", "vitlight"):
        assert_bit_equal(resumed[key], state[key], key)
    assert rows_without_times(run) == rows
