"""How the machine is shared between cells."""

import os
from types import SimpleNamespace

import pytest

from vitlight.errors import InputError
from vitlight.sweep.devices import devices_of, equal_shares, share_machine, visible_gpus


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """8 cores and no GPU; call it with GPUs to have some."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))

    def install(gpus):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ",".join(gpus))

    install("")
    return install


def cells(*devices, accelerator="auto", num_workers=0):
    """Planned cells that say so of their trainer."""
    return [
        SimpleNamespace(
            cell=SimpleNamespace(label=f"seed={number}"),
            run=SimpleNamespace(
                settings=SimpleNamespace(
                    trainer=SimpleNamespace(devices=each, accelerator=accelerator),
                    data=SimpleNamespace(num_workers=num_workers),
                )
            ),
        )
        for number, each in enumerate(devices)
    ]


def dealt(sharing):
    return [sharing.environment(slot).get("CUDA_VISIBLE_DEVICES") for slot in range(sharing.jobs)]


def test_gpus_are_dealt_out_in_equal_shares(machine):
    machine("4567")
    assert dealt(equal_shares(2)) == ["4,5", "6,7"]
    assert dealt(equal_shares(3)) == ["4", "5", "6"]
    assert dealt(equal_shares(5)) == ["4", "5", "6", "7", "4"]
    assert dealt(equal_shares(1)) == [None]


@pytest.mark.parametrize(
    ("devices", "jobs", "devices_per_cell", "expected"),
    [
        (("auto", "auto"), None, None, ["0", "1", "2", "3"]),
        (("auto",), 2, None, ["0,1", "2,3"]),
        (("auto",), None, 2, ["0,1", "2,3"]),
        ((2, "0,1", [0, 1], "2"), None, None, ["0,1", "2,3"]),
        ((3,), None, None, ["0,1,2"]),
        ((1,), 1, None, ["0"]),
        ((1,), 6, 1, ["0", "1", "2", "3", "0", "1"]),
        ((3,), 2, 3, ["0,1,2", "3,0,1"]),
    ],
)
def test_each_cell_gets_the_gpus_it_asks_for(machine, devices, jobs, devices_per_cell, expected):
    machine("0123")
    assert dealt(share_machine(cells(*devices), jobs, devices_per_cell)) == expected


@pytest.mark.parametrize(
    ("devices", "devices_per_cell", "message"),
    [
        ((2, 1), None, "cell seed=1 has trainer.devices=1, but each cell gets 2 GPUs; give --devices-per-cell 1 where"),
        ((2,), 1, "cell seed=0 has trainer.devices=2, but each cell gets 1 GPU; give --devices-per-cell 2 where"),
        ((5,), None, "trainer.devices is 5, but 4 GPUs can be seen here"),
        (("auto",), 5, "devices-per-cell is 5, but 4 GPUs can be seen here"),
        (("auto",), 0, "devices-per-cell is 0; it must be 1 or more: change --devices-per-cell"),
    ],
)
def test_shares_that_do_not_fit_are_refused(machine, devices, devices_per_cell, message):
    machine("0123")
    with pytest.raises(InputError) as error:
        share_machine(cells(*devices), None, devices_per_cell)
    assert str(error.value).startswith(message)


def test_without_gpus_the_cores_are_shared_out(machine, monkeypatch):
    def threads(*of):
        return share_machine(*of).environment(0).get("OMP_NUM_THREADS")

    assert threads(cells("auto")) is None
    assert threads(cells(2, accelerator="cpu"), 3) == "2"
    assert threads(cells("auto"), 9) == "1"
    with_three = share_machine(cells("auto"), None, 3)
    assert (with_three.jobs, with_three.environment(1)) == (2, {"OMP_NUM_THREADS": "3", "PYTHONUNBUFFERED": "1"})
    with pytest.raises(InputError, match="devices-per-cell is 9, but there are 8 cores and no GPU"):
        share_machine(cells("auto"), None, 9)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert threads(cells("auto"), 3) is None
    assert threads(cells("auto"), None, 4) == "4"


def test_cells_on_the_cpu_take_no_gpu(machine):
    machine("01")
    assert dealt(share_machine(cells("auto", 2, accelerator="cpu"))) == [None]
    assert dealt(share_machine(cells("auto"))) == ["0", "1"]


def test_what_is_said_before_cells_start(machine):
    assert share_machine(cells("auto")).lines() == ["1 cell at a time on 8 cores"]
    assert share_machine(cells("auto", num_workers=4), 2).lines() == ["2 cells at a time on 8 cores, 4 threads each"]
    assert share_machine(cells("auto", num_workers=4), 4).lines()[1:] == [
        "warning: data.num_workers=4 makes 16 loader processes on 8 cores; 2 are as many as fit"
    ]
    machine("01234")
    assert share_machine(cells("auto"), 2).lines()[0] == "2 cells at a time on 5 GPUs, 2 each; 1 left over"
    assert share_machine(cells("auto"), 1).lines()[0] == "1 cell at a time on 5 GPUs"
    assert share_machine(cells(1), 6).lines()[0] == "6 cells at a time on 5 GPUs, 1 each; cells share GPUs"


@pytest.mark.parametrize("jobs", [0, -1])
def test_jobs_must_be_positive(jobs):
    for share in (lambda: equal_shares(jobs), lambda: share_machine(cells("auto"), jobs)):
        with pytest.raises(InputError, match=f"jobs is {jobs}; it must be 1 or more: change --jobs"):
            share()


@pytest.mark.parametrize(
    ("devices", "accelerator", "number"),
    [
        ("auto", "auto", None),
        (-1, "gpu", None),
        (2, "cpu", None),
        ("3", "gpu", 3),
        ("3,", "gpu", 1),
        ([4, 5], "auto", 2),
    ],
)
def test_devices_of_a_trainer(devices, accelerator, number):
    assert devices_of(SimpleNamespace(devices=devices, accelerator=accelerator)) == number


@pytest.mark.parametrize(
    ("listed", "gpus"), [("", ()), ("-1", ()), ("0", ("0",)), ("2, GPU-8a", ("2", "GPU-8a")), ("1,-1,0", ("1",))]
)
def test_visible_gpus(monkeypatch, listed, gpus):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    assert visible_gpus() == gpus
