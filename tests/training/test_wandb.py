import sys
from types import SimpleNamespace

import pytest

from vitlight.training.wandb import build_wandb_logger, update_summary


@pytest.fixture
def settings(tmp_path):
    return {"run_dir": tmp_path, "run_id": "abc", "name": "n", "group": "g", "project": "p", "config": {"a": 1}}


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """What wandb.init is called with, without a server and without a run."""
    made = []

    def init(**arguments):
        made.append(arguments)
        raise RuntimeError("stopped here")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, Settings=lambda **values: values))
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_PROJECT", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    return made


def test_no_key_means_offline_and_never_a_prompt(settings, calls):
    with pytest.warns(UserWarning, match="W&B can't be used, the run goes on without it: stopped here"):
        assert build_wandb_logger(**settings) is None
    assert calls[0]["mode"] == "offline"
    assert calls[0]["id"] == "abc"
    assert calls[0]["config"] == {"a": 1}


@pytest.mark.filterwarnings("ignore:W&B can't be used")
def test_a_key_means_online_and_the_same_run(settings, calls, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    build_wandb_logger(**settings)
    assert (calls[0]["mode"], calls[0]["resume"]) == (None, "allow")


@pytest.mark.filterwarnings("ignore:W&B can't be used")
def test_a_key_for_another_host_is_no_key(settings, calls, monkeypatch, tmp_path):
    (tmp_path / "netrc").write_text("machine wandb.example.org login user password " + "k" * 40 + "\n")
    (tmp_path / "netrc").chmod(0o600)
    build_wandb_logger(**settings)
    assert calls[0]["mode"] == "offline"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    build_wandb_logger(**settings)
    assert calls[1]["mode"] is None


@pytest.mark.filterwarnings("ignore:W&B can't be used")
def test_the_environment_decides_the_project_and_the_mode(settings, calls, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    monkeypatch.setenv("WANDB_MODE", "offline")
    build_wandb_logger(**settings)
    assert (calls[0]["project"], calls[0]["mode"]) == ("mine", "offline")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert build_wandb_logger(**settings) is None
    assert len(calls) == 1


def test_other_ranks_do_not_touch_it(settings, calls, monkeypatch):
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    monkeypatch.setattr(rank_zero_only, "rank", 1)
    assert build_wandb_logger(**settings) is None
    assert calls == []


def test_a_summary_that_fails_is_a_warning():
    from lightning.pytorch.loggers import WandbLogger

    class Broken(WandbLogger):
        def __init__(self):
            pass

        @property
        def experiment(self):
            raise ConnectionError("gone")

    with pytest.warns(UserWarning, match="summary could not be written: gone"):
        update_summary([Broken()], {"top1": 0.5})
