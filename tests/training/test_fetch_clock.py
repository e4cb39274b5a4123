import pytest
from lightning.pytorch.profilers import PassThroughProfiler, SimpleProfiler

from vitlight.cli import main
from vitlight.training.fetch_clock import FetchClock
from vitlight.training.record import RunDirectory
from vitlight.training.resolve import resolve_run


class Noting:
    def __init__(self):
        self.calls = []

    def fetch_begins(self):
        self.calls.append("fetch begins")

    def fetch_ends(self):
        self.calls.append("fetch ends")

    def evaluation_begins(self):
        self.calls.append("evaluation begins")


@pytest.mark.parametrize("inner", [PassThroughProfiler(), SimpleProfiler()], ids=lambda each: type(each).__name__)
def test_fetches_of_the_training_loop_and_evaluations_are_told(inner):
    listener = Noting()
    clock = FetchClock(inner, listener)
    for name in (
        "[Callback]Record.on_train_start",
        "[_TrainingEpochLoop].train_dataloader_next",
        "[_EvaluationLoop].val_next",
        "[LightningModule]ImageClassifier.on_validation_model_zero_grad",
    ):
        with clock.profile(name):
            pass
    assert listener.calls == ["fetch begins", "fetch ends", "evaluation begins"]
    assert (clock.profile("[Callback]A.b") is clock.profile("[Callback]A.c")) == isinstance(inner, PassThroughProfiler)
    if isinstance(inner, SimpleProfiler):
        assert len(inner.recorded_durations) == 4
        assert "train_dataloader_next" in clock.summary()


def test_a_profiler_of_the_settings_still_reports_and_lightning_uses_these_names(fit_args, capfd, caplog):
    """Steps and evaluations are counted where a profiler was asked for as well."""
    with caplog.at_level("INFO", logger="lightning.pytorch.profilers.profiler"):
        assert main([*fit_args, "--trainer.profiler=simple"]) == 0
    assert "[_TrainingEpochLoop].train_dataloader_next" in caplog.text
    assert "[LightningModule]ImageClassifier.on_validation_model_zero_grad" in caplog.text
    perf = RunDirectory(resolve_run(fit_args).run_dir).read_result()["perf"]
    assert min(perf["data_wait"], perf["step"], perf["evaluation"]) > 0
