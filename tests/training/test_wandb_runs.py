"""Whole runs beside a W&B, and a logger, that hang for ever or raise: nothing of the run changes."""

import pytest
from lightning.pytorch.loggers import Logger

from tests.conftest import ROOT
from tests.training.fake_wandb import FakeWandb
from tests.training.test_run import rows_without_times
from vitlight.cli import main
from vitlight.training.record import RunDirectory
from vitlight.training.resolve import resolve_run


class RaisingLogger(Logger):
    name, version = "raising", 0

    @property
    def experiment(self):
        raise ConnectionError("no experiment")

    def log_metrics(self, metrics, step=None):
        raise ConnectionError("no route to host")

    def log_hyperparams(self, *args, **kwargs):
        raise ConnectionError("no route to host")


def results(args: list[str]) -> tuple[int, list[dict], dict]:
    """Exit code, rows and result, without what differs from run to run."""
    code = main(args)
    run = RunDirectory(resolve_run(args).run_dir)
    result = run.read_result()
    assert result is not None
    changing = (
        "wall",
        "device_seconds",
        "own_device",
        "images_per",
        "started",
        "finished",
        "commit",
        "verdict",
        "perf",
    )
    return code, rows_without_times(run), {k: v for k, v in result.items() if not k.startswith(changing)}


@pytest.fixture
def undisturbed(fit_args, tmp_path):
    return results([*fit_args, f"--run.root={tmp_path / 'undisturbed'}"])


@pytest.fixture
def fake(monkeypatch, tmp_path):
    fake = FakeWandb(tmp_path)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    monkeypatch.setenv("FAKE_WANDB_CALLS", str(fake.calls_path))
    monkeypatch.setenv("WANDB_MODE", "offline")
    return fake


def test_a_back_end_that_hangs_or_raises_changes_no_row_and_no_exit_code(
    fit_args, undisturbed, fake, monkeypatch, tmp_path
):
    args = [*fit_args, "--run.wandb=true", "--run.tags=[mine]", "--run.wandb_finish_seconds=2"]
    assert undisturbed[0] == 0
    for behaviour in ("hang in init", "hang in log", "raise in log"):
        monkeypatch.setenv("FAKE_WANDB", behaviour)
        with pytest.warns(UserWarning, match="W&B lacks rows of this run"):
            disturbed = results([*args, f"--run.root={tmp_path / behaviour.replace(' ', '-')}"])
        assert disturbed == undisturbed, behaviour
    assert fake.calls("init")[0][0]["tags"] == ["vit", "vit_nano1", "mine"]
    assert fake.calls("init")[0][0]["group"] == "tiny"


def test_a_users_logger_that_raises_changes_no_row_and_no_exit_code(fit_args, undisturbed, tmp_path):
    args = [*fit_args, f"--trainer.logger={__name__}.RaisingLogger", f"--run.root={tmp_path / 'raising'}"]
    with pytest.warns(UserWarning, match="RaisingLogger failed, metrics.jsonl has every row: no"):
        assert results(args) == undisturbed


def test_the_record_and_the_result_say_what_the_run_was_doing(fit_args, capsys):
    args = [*fit_args, "--run.peak_flops=1.0e+9", "--run.log_every_steps=1", "--run.checkpoint_every_steps=1"]
    assert main(args) == 0
    run = RunDirectory(resolve_run(args).run_dir)
    for row in run.rows():
        if row["event"] == "train":
            flops_per_second = row["perf/images_per_second"] * 6 * resolve_run(args).forward_macs
            assert row["perf/mfu"] == pytest.approx(flops_per_second / 1e9)
            assert 0 <= row["perf/data_wait_fraction"] < 1
            assert 0.1 < row["perf/memory_gib"] < 50
    result = run.read_result()
    shares = {
        name: result["perf"][name] for name in ("data_wait", "step", "logging", "checkpoint", "evaluation", "other")
    }
    assert sum(shares.values()) == pytest.approx(1.0)
    assert min(shares.values()) > 0
    assert result["perf"]["startup_seconds"] > 0
    out, err = capsys.readouterr()
    assert out.rstrip().endswith(result["verdict"])
    assert "100 %  step 12 of 12  images 192  loss " in err
