"""Memory of cells before they run, against what the estimate says of the network itself."""

import dataclasses

import pytest

from tests.sweep.planned_cells import planned_cell
from vitlight.cost import arch_params
from vitlight.cost.memory import estimate_memory
from vitlight.models import build_model
from vitlight.sweep import preflight
from vitlight.sweep.forecast import forecast
from vitlight.sweep.preflight import MemoryCheck, num_devices
from vitlight.sweep.rates import Rates

NETWORK = {"num_classes": 10, "image_size": 32, "in_channels": 3}
WEIGHTS = arch_params("vit_nano1", 32, num_classes=10)


def peak(batch, **how):
    return estimate_memory(build_model("vit_nano1", **NETWORK), 32, batch, **how).peak_bytes


def test_a_cell_needs_what_its_network_does_with_the_batch_of_a_device():
    need = MemoryCheck().need(planned_cell(batch=64, devices=4))
    assert (need.peak_bytes, need.batch_size) == (peak(16, keep_gradients=True), 16)
    assert MemoryCheck().need(planned_cell(batch=16)).peak_bytes == peak(16) < need.peak_bytes


@pytest.mark.parametrize(
    ("optimizer", "bytes_more"),
    [
        ({"name": "adamw"}, 0),
        ({"name": "adamw", "momentum_dtype": "bfloat16"}, -2),
        ({"name": "lamb"}, 0),
        ({"name": "sgd"}, -4),
        ({"name": "sgd", "momentum": 0.0}, -8),
        ({"name": "adafactor", "momentum_dtype": "bfloat16"}, -6),
    ],
)
def test_optimizers_differ_by_what_they_keep_for_a_weight(optimizer, bytes_more):
    need = MemoryCheck().need(planned_cell(optimizer=optimizer))
    # The allocator rounds each tensor up to 64 bytes, which the exchange of states leaves out.
    assert need.peak_bytes == pytest.approx(peak(10) + bytes_more * WEIGHTS, abs=64 * 2 * 200)


def test_an_average_of_the_weights_is_one_more_copy():
    with_average, without = (MemoryCheck().need(planned_cell(ema_decay=decay)).peak_bytes for decay in (0.999, None))
    assert with_average - without == 4 * WEIGHTS


def test_precision_and_checkpointing_reach_the_estimate():
    plain = MemoryCheck().need(planned_cell(batch=64)).peak_bytes
    checkpointed = MemoryCheck().need(planned_cell(batch=64, activation_checkpointing=True)).peak_bytes
    assert checkpointed == peak(64, activation_checkpointing=True) < plain
    # Lightning's short name and its long one.
    assert {MemoryCheck().need(planned_cell(precision=name)).peak_bytes for name in ("bf16", "bf16-mixed")} == {
        MemoryCheck("cpu").need(planned_cell(precision="bf16-mixed")).peak_bytes
    }


def test_what_cant_be_told_is_none():
    assert MemoryCheck().need(planned_cell(precision="64-true")) is None
    assert MemoryCheck().need(planned_cell(batch=2, devices=4)) is None
    without = dataclasses.replace(planned_cell().run, settings=None)
    assert MemoryCheck().need(dataclasses.replace(planned_cell(), run=without)) is None


def test_equal_shapes_are_estimated_once(monkeypatch):
    calls = []
    real = preflight._estimate
    monkeypatch.setattr(preflight, "_estimate", lambda *args: calls.append(args) or real(*args))
    check = MemoryCheck()
    needs = {check.need(planned_cell(index, steps=index + 1, seed=index)) for index in range(5)}
    assert (len(needs), len(calls)) == (1, 1)


@pytest.mark.parametrize(
    ("devices", "number"), [(1, 1), (8, 8), ("4", 4), ("0,1", 2), ("3,", 1), ([0, 2, 4], 3), ("auto", 1), (-1, 1)]
)
def test_devices_as_lightning_takes_them(devices, number):
    assert num_devices(planned_cell(devices=devices)) == number


def test_cells_that_dont_fit_are_found():
    cells = [planned_cell(0, batch=8), planned_cell(1, batch=256), planned_cell(2, precision="64-true")]
    result = forecast(cells, Rates(), memory_bytes=peak(8))
    assert [result.fits(cell) for cell in result.cells] == [True, False, None]
    assert [cell.planned.cell.index for cell in result.too_large] == [1]
    assert forecast(cells, Rates()).cells[0].need is None, "not asked for"
