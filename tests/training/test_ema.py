"""The average of a run's weights: its closed form, the same however the run was cut up, and what is evaluated."""

import json
from pathlib import Path

import pytest
import torch

from tests.conftest import fit_args as fit_args_fixture
from tests.training.test_run import assert_bit_equal, final_state, rows_without_times
from tests.training.zygote import free_port, open_zygote, rank_environment
from vitlight.cli import main
from vitlight.errors import InputError
from vitlight.models import build_model
from vitlight.models.weights import load_weights
from vitlight.training.ema import WeightAverage, check_average
from vitlight.training.record import RunDirectory

DECAY = 0.8
STEPS = 12
OPTIONS = {"depth": 1, "width": 16, "mlp_dim": 32, "num_heads": 2}


def args_for(tiny_shards: Path, root: Path, arch: str = "vit_nano1") -> list[str]:
    args = [*fit_args_fixture.__wrapped__(tiny_shards, root), f"--model.ema_decay={DECAY}", f"--model.arch={arch}"]
    return args if arch != "vit_nano1" else [*args, f"--model.model_options={json.dumps(OPTIONS)}"]


def run_in(root: Path) -> RunDirectory:
    (path,) = (root / "runs" / "tiny").iterdir()
    return RunDirectory(path)


def noting(folder: Path) -> str:
    """The setting that notes the weights of every step in `folder`."""
    folder.mkdir(exist_ok=True)
    value = [{"class_path": "tests.training.poison.NoteWeights", "init_args": {"folder": str(folder)}}]
    return f"--trainer.callbacks={json.dumps(value)}"


def closed_form(folder: Path, decays: list[float]) -> dict[str, torch.Tensor]:
    """The average after all steps, as a weighted sum of the weights noted before the first step and after each."""
    states = [torch.load(folder / f"step-{step}.rank-0.pt") for step in range(len(decays) + 1)]
    parts = torch.tensor([1.0, *(1 - decay for decay in decays)], dtype=torch.float64)
    for step, decay in enumerate(decays, start=1):
        parts[:step] *= decay
    assert parts.sum().item() == pytest.approx(1.0)
    return {
        name: (torch.stack([state[name].double() for state in states]) * parts.view(-1, *[1] * value.dim())).sum(0)
        if value.is_floating_point()
        else value
        for name, value in states[-1].items()
    }


def assert_close(average: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert average.keys() == expected.keys()
    for name, value in average.items():
        torch.testing.assert_close(value.to(expected[name].dtype), expected[name], rtol=1e-5, atol=1e-6, msg=name)


@pytest.fixture(scope="module")
def whole(tiny_shards, tmp_path_factory):
    """A finished run, and the folder of the weights it had at every step."""
    root = tmp_path_factory.mktemp("whole")
    assert main([*args_for(tiny_shards, root), noting(root / "noted")]) == 0
    return run_in(root), root / "noted"


def test_the_average_is_the_closed_form_over_the_weights_of_every_step(whole):
    run, noted = whole
    state = final_state(run)
    assert_close(state["state_dict"], closed_form(noted, [DECAY] * STEPS))
    assert_bit_equal(state["raw_state_dict"], torch.load(noted / f"step-{STEPS}.rank-0.pt"))
    assert not torch.equal(*(next(iter(state[name].values())) for name in ("state_dict", "raw_state_dict")))


def test_what_is_reported_is_the_accuracy_of_the_average(whole, capfd):
    run, _ = whole
    newest, result = max(run.checkpoints.glob("step-*.ckpt")), run.read_result()
    assert main(["test", f"--ckpt_path={newest}"]) == 0
    printed = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert (printed["top1_count"], printed["loss"]) == (result["top1_count"], result["loss"])
    model = build_model("vit_nano1", num_classes=4, image_size=28, **OPTIONS)
    load_weights(model, newest)
    state = final_state(run)
    for name, value in model.state_dict().items():
        assert torch.equal(value, state["state_dict"][f"model.{name}"]), name
    raw = torch.load(newest, weights_only=True)
    torch.save({**raw, "state_dict": raw["raw_state_dict"]}, run.path / "raw.ckpt")
    assert main(["test", f"--config={run.experiment_path}", f"--ckpt_path={run.path / 'raw.ckpt'}"]) == 0
    assert json.loads(capfd.readouterr().out.splitlines()[-1])["loss"] != result["loss"]


def test_a_resumed_run_has_the_same_weights_average_and_record(whole, tiny_shards, tmp_path):
    expected, _ = whole
    args = args_for(tiny_shards, tmp_path)
    assert main(args) == 0
    run = run_in(tmp_path)
    assert run.path.name == expected.path.name
    max(run.checkpoints.glob("step-*.ckpt")).unlink()  # back to step 10, between two evaluations
    run.result_path.unlink()
    assert main(args) == 0
    assert rows_without_times(run) == rows_without_times(expected)
    left, right = final_state(run), final_state(expected)
    for name in ("state_dict", "raw_state_dict", "optimizer_states"):
        assert_bit_equal(left[name], right[name], name)
    run.result_path.unlink()
    assert main(args) == 0  # the evaluations alone, from the last checkpoint
    assert run.read_result()["loss"] == expected.read_result()["loss"]


def test_evaluations_change_nothing_in_the_training(whole, tiny_shards, tmp_path):
    expected, _ = whole
    assert main([*args_for(tiny_shards, tmp_path), "--run.num_evaluations=1"]) == 0
    left, right = final_state(run_in(tmp_path)), final_state(expected)
    for name in ("state_dict", "raw_state_dict", "optimizer_states"):
        assert_bit_equal(left[name], right[name], name)


def test_buffers_are_averaged_counters_copied_and_accumulated_batches_are_one_step(tiny_shards, tmp_path):
    more = ["--trainer.accumulate_grad_batches=2", "--model.ema_warmup=true", noting(tmp_path / "noted")]
    assert main([*args_for(tiny_shards, tmp_path, "resnet_nano1"), *more]) == 0
    run = run_in(tmp_path)
    decays = [min(DECAY, (1 + step) / (10 + step)) for step in range(1, STEPS + 1)]
    state = final_state(run)
    assert_close(state["state_dict"], closed_form(tmp_path / "noted", decays))
    counters = {int(value) for name, value in state["state_dict"].items() if name.endswith("num_batches_tracked")}
    assert counters == {2 * STEPS}
    assert any(name.endswith("running_var") for name in state["state_dict"])


def test_the_average_of_bfloat16_weights_is_kept_in_float32(tiny_shards, tmp_path):
    assert main([*args_for(tiny_shards, tmp_path), "--trainer.precision=bf16-true", noting(tmp_path / "noted")]) == 0
    state = final_state(run_in(tmp_path))
    assert {value.dtype for value in state["raw_state_dict"].values()} == {torch.bfloat16}
    assert {value.dtype for value in state["state_dict"].values()} == {torch.float32}
    assert_close(state["state_dict"], closed_form(tmp_path / "noted", [DECAY] * STEPS))


def test_two_ranks_keep_the_same_average_and_evaluate_it(whole, tiny_shards, tmp_path):
    expected, _ = whole
    args = [
        *args_for(tiny_shards, tmp_path),
        "--trainer.devices=2",
        "--trainer.strategy=ddp",
        noting(tmp_path / "noted"),
    ]
    port = free_port()
    with open_zygote() as zygote:
        pids = [zygote.start(args, tmp_path / f"log{rank}", rank_environment(rank, 2, port)) for rank in (0, 1)]
        assert [zygote.exit_code(pid) for pid in pids] == [0, 0], (tmp_path / "log0").read_text()
    run = run_in(tmp_path)
    for step in range(STEPS + 1):
        assert_bit_equal(*(torch.load(tmp_path / "noted" / f"step-{step}.rank-{rank}.pt") for rank in (0, 1)))
    assert_close(final_state(run)["state_dict"], closed_form(tmp_path / "noted", [DECAY] * STEPS))
    # The average after the evaluated steps, on either number of ranks.
    rows, others = ([row["val/loss"] for row in each.rows() if row["event"] == "val"] for each in (run, expected))
    assert rows == pytest.approx(others, rel=2e-4)
    assert run.read_result()["loss"] == pytest.approx(expected.read_result()["loss"], rel=2e-4)


def test_the_warm_up_is_that_of_tensorflow():
    warm, plain = WeightAverage(0.75, has_warmup=True), WeightAverage(0.75)
    assert [warm.decay_after(step) for step in (1, 2, 10, 26, 27)] == [2 / 11, 3 / 12, 11 / 20, 0.75, 0.75]
    assert {plain.decay_after(step) for step in (1, 1000)} == {0.75}


@pytest.mark.parametrize(
    ("decay", "has_warmup", "message"),
    [
        (1.0, False, r"model\.ema_decay=1\.0 is not between 0 and 1"),
        (0.0, True, r"model\.ema_decay=0\.0 is not between 0 and 1"),
        (None, True, r"model\.ema_warmup=true has no meaning without model\.ema_decay"),
    ],
)
def test_settings_without_a_meaning_are_refused(decay, has_warmup, message):
    with pytest.raises(InputError, match=message):
        check_average(decay, has_warmup)
