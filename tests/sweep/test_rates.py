"""How long cells take, from what is given and from what others took."""

import json
import sys

import pytest

from tests.sweep.planned_cells import planned_cell, write_done
from vitlight.errors import InputError
from vitlight.sweep.calibrate import calibrate, cells_to_calibrate
from vitlight.sweep.given_rates import parse_rate
from vitlight.sweep.rates import (
    CALIBRATION,
    Measurement,
    Rates,
    estimate_seconds,
    known_rates,
    measured_seconds,
    network_of,
    write_calibration,
)


@pytest.mark.parametrize(
    ("text", "pattern", "unit", "value"),
    [
        ("2500images/s", "*", "images", 2500),
        ("2.5k img/s", "*", "images", 2500),
        ("90TFLOP/s", "*", "flops", 9e13),
        ("9e13FLOP/s", "*", "flops", 9e13),
        ("1.5 PFLOPs", "*", "flops", 1.5e15),
        ("coatnet_*=800images/s", "coatnet_*", "images", 800),
    ],
)
def test_rates_are_read(text, pattern, unit, value):
    rate = parse_rate(text)
    assert (rate.pattern, rate.unit, rate.value) == (pattern, unit, pytest.approx(value))


@pytest.mark.parametrize("text", ["2500", "fast", "-3images/s", "0images/s", "1..2images/s", "3XFLOP/s", "10%"])
def test_what_is_no_rate_is_refused(text):
    with pytest.raises(InputError, match="is no rate of one device; write 2500images/s"):
        parse_rate(text)


def test_a_given_rate_counts_a_cells_own_part_and_only_the_architectures_it_names():
    cell = planned_cell(macs=1000, steps=10, own=0.5)  # 100 images, 50 of them its own
    rates = Rates(given=(parse_rate("vit_*=25images/s"), parse_rate("resnet*=1images/s")))
    assert estimate_seconds(cell, rates) == pytest.approx(2.0)
    assert estimate_seconds(cell, Rates(given=(parse_rate("3kFLOP/s"),))) == pytest.approx(100.0)
    assert estimate_seconds(planned_cell(arch="coatnet_0"), rates) is None
    two = Rates(given=(parse_rate("25images/s"),)).estimate(planned_cell(steps=10, devices=2))
    assert (two.device_seconds, two.wall_seconds) == (4.0, 2.0)


def test_a_cell_of_a_measured_network_takes_its_start_and_the_rest_at_its_rate(tmp_path):
    done, again = (planned_cell(i, steps=10, folder=tmp_path, seed=i) for i in (0, 1))
    longer = planned_cell(2, steps=40, folder=tmp_path)
    write_done(done, 12.0, perf={"startup_seconds": 2.0}, wall_seconds=15.0)
    rates = known_rates([done, again, longer])
    assert estimate_seconds(again, rates) == pytest.approx(12.0)
    estimate = rates.estimate(longer)
    assert (estimate.device_seconds, estimate.wall_seconds) == (pytest.approx(42.0), pytest.approx(45.0))
    assert estimate.source == "1 finished cell"
    assert measured_seconds(done) == 12.0
    assert rates.estimate(done) is None, "its own result is no estimate"


def test_several_results_of_a_network_are_pooled(tmp_path):
    cells = [planned_cell(i, steps=10 * (i + 1), folder=tmp_path) for i in range(3)]
    write_done(cells[0], 1.0)
    write_done(cells[1], 8.0)
    assert estimate_seconds(cells[2], known_rates(cells)) == pytest.approx(30 / (30 / 9.0))
    assert estimate_seconds(cells[0], known_rates(cells)) == pytest.approx(10 / (20 / 8.0)), "the other one alone"


def test_between_two_sizes_of_a_family_the_rate_is_on_the_line_in_logarithms(tmp_path):
    small, middle, large = (planned_cell(i, f"vit_nano{i + 1}", 1000 * 4**i, folder=tmp_path) for i in range(3))
    for cell, rate in ((small, 1e3), (large, 1e5)):
        write_done(cell, cell.run.train_flops / rate)
    rates = known_rates([small, middle, large])
    assert estimate_seconds(middle, rates) == pytest.approx(middle.run.train_flops / 1e4)
    assert rates.estimate(middle).source == "between vit_nano1 and vit_nano3"
    assert estimate_seconds(planned_cell(9, "vit_nano4", 64_000), rates) is None, "beyond what was measured"
    assert estimate_seconds(planned_cell(9, "resnet_nano2", 4000), rates) is None, "another family"
    assert estimate_seconds(planned_cell(9, "vit_nano2", 4000, precision="bf16-mixed"), rates) is None


def test_another_size_of_image_takes_the_rate_of_the_nearest_of_its_architecture(tmp_path):
    near, far, asked = (planned_cell(i, macs=macs, folder=tmp_path) for i, macs in enumerate((2000, 9000, 3000)))
    for cell, rate in ((near, 1e3), (far, 1e4)):
        write_done(cell, cell.run.train_flops / rate)
    estimate = known_rates([near, far, asked]).estimate(asked)
    assert estimate.device_seconds == pytest.approx(asked.run.train_flops / 1e3)
    assert estimate.source == "1 finished cell, at another size or batch"


def test_a_running_cell_and_a_calibration_count_until_there_is_a_result(tmp_path):
    running, asked, done = (planned_cell(i, steps=100, folder=tmp_path, seed=i) for i in range(3))
    calibrated = Measurement(network_of(asked), 6000.0, 1.0, None, None, "calibration")
    write_calibration(tmp_path / CALIBRATION, [calibrated])
    cells = [running, asked, done]
    assert estimate_seconds(asked, known_rates(cells)) == pytest.approx(asked.run.train_flops / 6000)
    running.run.run_dir.mkdir()
    rows = [
        {"event": "train", "data/samples_seen": n, "time/device_seconds": 5.0 + n / 4, "x": "y"} for n in (10, 20, 30)
    ]
    text = "\n".join(json.dumps(row) for row in [*rows, {"event": "val"}]) + '\n{"torn'
    (running.run.run_dir / "metrics.jsonl").write_text(text)
    assert estimate_seconds(asked, known_rates(cells)) == pytest.approx(1000 / 4)
    assert known_rates(cells).estimate(asked).source == "1 running cell"
    write_done(done, 500.0)
    assert estimate_seconds(asked, known_rates(cells)) == pytest.approx(500.0)


def test_results_that_say_nothing_and_unreadable_ones_are_passed_over(tmp_path):
    cells = [planned_cell(i, folder=tmp_path, seed=i) for i in range(4)]
    write_done(cells[0], 1.0, status="diverged")
    write_done(cells[1], 1.0, own_train_flops=None)
    cells[2].run.run_dir.mkdir()
    (cells[2].run.run_dir / "result.json").write_text('{"status": "do')
    assert known_rates(cells) == Rates()


def test_a_calibration_that_is_torn_is_named(tmp_path):
    (tmp_path / CALIBRATION).write_text('[{"network"')
    with pytest.raises(InputError, match=r"calibration\.json is no calibration that can be read; remove it"):
        known_rates([planned_cell(folder=tmp_path)])


def test_the_smallest_and_largest_of_each_family_are_calibrated_unless_known():
    archs = [("vit_nano1", 10), ("vit_nano2", 20), ("vit_nano3", 30), ("resnet_nano1", 10), ("vit_nano1", 10)]
    cells = [planned_cell(i, arch, macs, seed=i) for i, (arch, macs) in enumerate(archs)]
    assert [cell.cell.index for cell in cells_to_calibrate(cells, Rates())] == [0, 2, 3]
    known = Measurement(network_of(cells[2]), 1.0, 1.0, None, None, "result", "x")
    assert [cell.cell.index for cell in cells_to_calibrate(cells, Rates((known,)))] == [0, 3]


FAKE_FIT = """
import json, pathlib, signal, sys, time
flags = dict(arg.partition("=")[::2] for arg in sys.argv[1:])
folder = pathlib.Path(flags["--run.root"], flags["--run.name"], "abc")
folder.mkdir(parents=True)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
for step in range(1, LAST + 1):
    row = {"event": "train", "step": step, "data/samples_seen": 10 * step, "time/device_seconds": 3.0 + 0.5 * step}
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\\n")
while HANGS:
    time.sleep(0.01)
sys.exit(CODE)
"""


def fake_fit(tmp_path, last, hangs=False, code=0):
    path = tmp_path / "fake.py"
    path.write_text(FAKE_FIT.replace("LAST", str(last)).replace("HANGS", str(hangs)).replace("CODE", str(code)))
    return (sys.executable, str(path))


@pytest.mark.parametrize("hangs", [True, False])
def test_calibrating_measures_from_the_first_row_to_the_last(tmp_path, hangs):
    cell, said = planned_cell(macs=1000), []
    measured = calibrate(cell, 0.1, said.append, fake_fit(tmp_path, last=5, hangs=hangs))
    assert (measured.flops, measured.device_seconds) == (6 * 1000 * 40, 2.0)
    assert (measured.network, measured.source) == (network_of(cell), "calibration")
    assert said == [f"calibrating on cell 0 ({cell.cell.label}) for 0.1 s"]


def test_a_calibration_that_fails_or_is_too_short_says_so(tmp_path):
    with pytest.raises(InputError, match="calibration of cell 0: exit code 1 and no result"):
        calibrate(planned_cell(), 0.1, command=fake_fit(tmp_path, last=2, code=1))
    with pytest.raises(InputError, match=r"cell 0 made 1 steps in 0\.1 s, too few to measure; raise --calibrate"):
        calibrate(planned_cell(), 0.1, command=fake_fit(tmp_path, last=1))
