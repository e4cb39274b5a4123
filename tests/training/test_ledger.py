from types import SimpleNamespace

import pytest

from vitlight.training import ledger as module
from vitlight.training.ledger import ACCOUNTS, CHECKPOINT, DATA_WAIT, EVALUATION, OTHER, STARTUP, STEP, Ledger, verdict
from vitlight.training.run_settings import RunSettings

SETTINGS = RunSettings(log_every_steps=7, checkpoint_every_steps=11, num_evaluations=13)


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


def spend(ledger: Ledger, clock, account: int, seconds: float) -> None:
    ledger.enter(account)
    clock.now += seconds


def test_every_second_belongs_to_one_account(clock):
    ledger = Ledger()
    clock.now += 50.0
    ledger.start()  # those were nobody's
    clock.now += 2.0
    for account, seconds in ((DATA_WAIT, 1.0), (STEP, 4.0), (DATA_WAIT, 0.5), (STEP, 3.0), (EVALUATION, 1.5)):
        spend(ledger, clock, account, seconds)
    assert ledger.state() == dict(zip(ACCOUNTS, (1.5, 7.0, 0.0, 0.0, 1.5, 0.0, 2.0), strict=True))
    assert ledger.shares() == {
        **dict.fromkeys(ACCOUNTS[:STARTUP], 0.0), "data_wait": 0.15, "step": 0.7, "evaluation": 0.15,
    }  # fmt: skip
    assert ledger.training_seconds == 10.5


def test_enter_hands_back_the_account_that_it_interrupts(clock):
    ledger = Ledger()
    ledger.enter(STEP)
    before = ledger.enter(CHECKPOINT)
    clock.now += 3.0
    ledger.enter(before)
    clock.now += 1.0
    assert (before, ledger.settle()[CHECKPOINT], ledger.settle()[STEP]) == (STEP, 3.0, 1.0)


def test_a_row_covers_the_time_since_the_last_one_and_totals_survive_a_resume(clock):
    ledger = Ledger()
    spend(ledger, clock, STEP, 5.0)
    ledger.mark()
    spend(ledger, clock, DATA_WAIT, 2.0)
    ledger.move(DATA_WAIT, STEP, 0.5)
    assert ledger.since_mark() == [1.5, 0.5, 0, 0, 0, 0, 0]
    resumed = Ledger()
    resumed.restore(ledger.state())
    resumed.start()
    spend(resumed, clock, STEP, 1.0)
    assert (resumed.settle()[DATA_WAIT], resumed.settle()[STEP]) == (1.5, 6.5)
    assert resumed.since_mark()[STEP] == 1.0


def shares(**given: float) -> dict[str, float]:
    return {**dict.fromkeys(ACCOUNTS[:STARTUP], 0.0), **given}


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (shares(step=0.93, data_wait=0.07), "compute-bound: 93% in steps, 7% waiting for data"),
        (shares(step=0.905, other=0.095), "compute-bound: 90% in steps, 10% other"),
        (
            shares(step=0.6, data_wait=0.25, evaluation=0.15),
            "input-bound: 60% in steps, 25% waiting for data, 15% evaluating; "
            "try data.num_workers=8 (2 now, as many cores a rank)",
        ),
        (
            shares(step=0.8, logging=0.2),
            "waiting on logging: 80% in steps, 20% logging; raise run.log_every_steps=7, "
            "or put the run directory on a faster disk",
        ),
        (
            shares(step=0.8, checkpoint=0.2),
            "waiting on checkpoint: 80% in steps, 20% in checkpoints; raise run.checkpoint_every_steps=11, "
            "or put the run directory on a faster disk",
        ),
        (
            shares(step=0.5, evaluation=0.5),
            "waiting on evaluation: 50% in steps, 50% evaluating; lower run.num_evaluations=13",
        ),
        (
            shares(step=0.85, other=0.15),
            "bound by the loop's own work: 85% in steps, 15% other; "
            "a larger data.global_batch_size gives each step more to do",
        ),
    ],
    ids=lambda value: value.partition(":")[0] if isinstance(value, str) else "",
)  # fmt: skip
def test_the_largest_wait_of_a_tenth_or_more_is_the_verdict(given, line):
    assert verdict(given, None, 2, SETTINGS, num_cores=8) == line


def test_what_more_cannot_help_is_not_advised():
    line = verdict(shares(step=0.5, data_wait=0.5), None, 8, SETTINGS, num_cores=8)
    assert line.endswith(
        "`vitlight data bench` says which stage limits; smaller images (`vitlight data pack --short-side`) help"
    )
    line = verdict(shares(step=0.5, data_wait=0.5), None, None, SETTINGS, num_cores=8)
    assert line.endswith("; the loader is shared: the slowest of its cells or --share-loader-workers limits")


def test_a_compute_bound_run_hears_its_mfu_and_what_could_be_faster():
    line = verdict(shares(step=1.0), 0.416, 2, SETTINGS, num_cores=8, hints=["a", "b"])
    assert line == "compute-bound (MFU 42%): 100% in steps; a; b"


def test_the_last_account_is_the_one_that_shares_leave_out():
    assert ACCOUNTS[STARTUP] == "startup" == ACCOUNTS[-1]
    assert ACCOUNTS[OTHER] == "other"
