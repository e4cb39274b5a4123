import json
import re
from types import SimpleNamespace

import pytest

from tests.conftest import tiny_sample
from tests.data.shaky_server import Shaky, serve
from vitlight.cli import main
from vitlight.data.bench import STAGES, StageTimes, endless_requests, measure_fetch, measure_stages, verdict
from vitlight.data.plan import DataPlan, PlanSource
from vitlight.data.shards import Sample, write_shards
from vitlight.data.subset import AllRows
from vitlight.data.training_set import IndexOptions

QUICK = ["--image-size", "28", "--batch-size", "16", "--seconds", "0.2"]


def times(cpu_share: float = 1.0, **seconds: float) -> StageTimes:
    """Of 100 images; a stage not named takes 1 ms."""
    return StageTimes({stage: seconds.get(stage, 0.001) for stage in STAGES}, 100, 250_000, cpu_share)


def test_rates_of_a_core():
    stages = times(decode=0.1, crop=0.047)
    assert stages.per_image("decode") == 0.001
    assert stages.images_per_second == pytest.approx(100 / 0.15)


@pytest.mark.parametrize(
    ("stages", "by_workers", "transfer", "num_cores", "fetch", "expected"),
    [
        pytest.param(
            times(decode=0.096),
            {1: 1000.0, 2: 1900.0, 4: 3600.0},
            9e5,
            4,
            None,
            r"^decode limits \(96% of a worker's time\); set data\.num_workers=4 .*: 3,600 images/s; smaller images",
            id="more workers, more images",
        ),
        pytest.param(
            times(decode=0.1),
            {1: 1000.0, 2: 1900.0, 4: 1960.0, 8: 1980.0},
            9e5,
            8,
            None,
            r"set data\.num_workers=2 for one rank on this machine: 1,900 images/s",
            id="the fewest workers within 5 % of the best",
        ),
        pytest.param(
            times(decode=0.1),
            {0: 1000.0, 1: 990.0, 2: 1000.0},
            9e5,
            2,
            None,
            r"set data\.num_workers=1 ",
            id="no worker is no advice, though it is as fast by itself",
        ),
        pytest.param(
            times(decode=0.1),
            {0: 1000.0},
            9e5,
            2,
            None,
            r"set data\.num_workers=0 .*; training waits for each batch without workers: try some$",
            id="unless nothing else was tried",
        ),
        pytest.param(
            times(decode=0.1),
            {1: 900.0, 2: 1900.0},
            9e5,
            16,
            None,
            r"; 14 more cores are free: try more workers$",
            id="cores free",
        ),
        pytest.param(
            times(decode=0.1),
            {2: 1900.0, 1: 900.0},
            9e5,
            2,
            None,
            r"data\.num_workers=2 .*smaller images",
            id="in any order",
        ),
        pytest.param(
            times(read=0.5),
            {2: 500.0},
            9e5,
            2,
            None,
            r"^read limits \(99% .*the storage limits; copy the shards",
            id="storage",
        ),
        pytest.param(
            times(augment=0.5),
            {2: 500.0},
            9e5,
            2,
            None,
            r"^augment limits .*cheaper data\.augmentation\.policy",
            id="policy",
        ),
        pytest.param(
            times(decode=0.1),
            {1: 5000.0},
            2000.0,
            1,
            None,
            r"^the transfer to the device limits \(2,000 images/s; the loader gives 5,000\); set data\.num_workers=1",
            id="transfer",
        ),
        pytest.param(
            times(decode=0.1),
            {1: 5000.0},
            2000.0,
            1,
            900.0,
            r"^fetching limits \(900 images/s; the loader gives 5,000\); set data\.num_workers=1 .*copy the shards nearer$",
            id="network",
        ),
        pytest.param(
            times(decode=0.1), {1: 800.0}, 2e5, 1, 900.0, r"^decode limits", id="a network that is fast enough"
        ),
        pytest.param(
            times(0.6, decode=0.1),
            {1: 800.0},
            2e5,
            1,
            None,
            r"; other work took 40% of a core meanwhile: measure again when the machine is idle$",
            id="a busy machine",
        ),
    ],
)
def test_the_verdict(stages, by_workers, transfer, num_cores, fetch, expected):
    line = verdict(stages, by_workers, transfer, num_cores, fetch)
    assert re.search(expected, line), line
    assert "\n" not in line


def bench(capsys, *args: str) -> dict:
    assert main(["data", "bench", *QUICK, "--json", *args]) == 0
    return json.loads(capsys.readouterr().out)


def test_local_shards(tiny_shards, capsys):
    report = bench(capsys, str(tiny_shards / "train"), "--workers", "0,1")
    assert report["num_samples"] == 200
    stages = report["microseconds_per_image"]
    assert list(stages) == list(STAGES)
    assert min(stages.values()) > 0
    assert report["images_per_second_of_a_core"] == pytest.approx(1e6 / sum(stages.values()))
    sizes = [len(tiny_sample(i, "train").image) for i in range(200)]
    assert min(sizes) <= report["encoded_bytes_per_image"] <= max(sizes)
    assert list(report["images_per_second_by_workers"]) == ["0", "1"]
    alone, worker = report["images_per_second_by_workers"].values()
    assert min(alone, worker, report["images_per_second_to_device"], report["cpu_share"]) > 0
    assert report["images_per_second_fetched"] is None
    assert "set data.num_workers=1 " in report["verdict"]


def test_the_table(tiny_shards, capsys):
    assert (
        main(["data", "bench", *QUICK, str(tiny_shards / "test"), "--workers", "0", "--policy", "trivialaugment"]) == 0
    )
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"61 images of [\d.]+ kB, \d+ cores", lines[0])
    assert [line.split()[0] for line in lines[3:9]] == [*STAGES, "all"]
    assert lines[-2].startswith("to cpu, normalised: ")
    assert "set data.num_workers=0" in lines[-1]


def test_remote_shards_are_fetched_for_it_and_nothing_is_left(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("VITLIGHT_CACHE", str(tmp_path / "cache"))
    write_shards((tiny_sample(i, "train") for i in range(80)), tmp_path / "shards", samples_per_shard=16)
    files = {f"/{path.name}": path.read_bytes() for path in (tmp_path / "shards").glob("*.tar")}
    with serve(files, Shaky(bytes_per_second=50_000)) as server:
        report = bench(capsys, server.url("/shard-{000000..000004}.tar"), "--workers", "0")
        requested = sorted(path for path, _ in server.requests)
    assert requested == [f"/shard-00000{i}.tar" for i in range(4)], "each of the first four once"
    assert report["num_samples"] == 64
    at_most = 4 * 50_000 / (sum(map(len, files.values())) / 80)  # four connections, each no faster than the server
    assert 0 < report["images_per_second_fetched"] < 1.3 * at_most  # the server's first block comes at once
    assert report["verdict"].startswith("fetching limits (")
    assert list((tmp_path / "cache").iterdir()) == []


def test_the_rate_of_fetching(tmp_path, monkeypatch):
    clock = iter([100.0, 102.5])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    for name, size in {"a": 3000, "b": 2000}.items():
        (tmp_path / name).write_bytes(bytes(size))
    cache = SimpleNamespace(fetch=lambda shard: tmp_path / shard)
    assert measure_fetch(cache, ["a", "b"]) == 5000 / 2.5


def test_measurements_go_on_where_the_last_one_ended(tiny_shards):
    index = IndexOptions().load(str(tiny_shards / "train"))
    plan = DataPlan(PlanSource(AllRows(index.shard_start), len(index)), seed=0, global_batch_size=16)
    requests = endless_requests(plan)
    steps = [next(requests).step for _ in range(3)]
    assert steps == [0, 1, 2]
    assert next(requests).ids.tolist() == plan.batch(3).ids.tolist()


def test_a_damaged_image_is_named(tmp_path, capsys):
    sample = tiny_sample(1, "train")
    assert sample.extension == "png"
    damaged = sample.image[:100] + bytes(len(sample.image) - 200) + sample.image[-100:]
    samples = [tiny_sample(0, "train"), Sample(sample.key, damaged, "png", sample.label)]
    write_shards(samples, tmp_path / "shards")
    assert main(["data", "bench", *QUICK, str(tmp_path / "shards"), "--workers", "0"]) == 2
    error = capsys.readouterr().err
    assert re.search(r"image 'train/00001' in shard \S+/shard-000000\.tar can't be decoded: ", error)
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--workers", "two"], "--workers=two is not a list of numbers from 0 on, such as 1,2,4"),
        (["--workers", "1,-1"], "--workers=1,-1 is not a list of numbers from 0 on"),
        (["--workers", ""], "--workers= is not a list of numbers"),
        (["--seconds", "nan"], "--seconds=nan is not a positive number"),
        (["--seconds", "inf"], "--seconds=inf is not a positive number"),
        (["--image-size", "0"], "--image-size=0 is not a positive number"),
        (["--batch-size", "-4"], "--batch-size=-4 is not a positive number"),
        (["--policy", "random"], "data.augmentation.policy=random"),
    ],
)
def test_bad_options_are_one_line(tiny_shards, capsys, options, message):
    assert main(["data", "bench", str(tiny_shards / "train"), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_shards_that_are_not_there(tmp_path, capsys):
    for source, message in ((tmp_path, "no *.tar in this folder"), (tmp_path / "x.tar", "No such file or directory")):
        assert main(["data", "bench", str(source)]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_stages_are_timed_for_whole_batches(tiny_shards):
    from vitlight.data.augment import Augmentation
    from vitlight.data.batches import ImageBatches, ImageSource
    from vitlight.data.store import open_store

    index = IndexOptions().load(str(tiny_shards / "train"))
    plan = DataPlan(PlanSource(AllRows(index.shard_start), len(index)), seed=0, global_batch_size=16)
    batches = ImageBatches(
        [ImageSource(index, open_store(index.shards))],
        size=28,
        channels=3,
        seed=0,
        augmentation=Augmentation(),
        eval_crop=1,
    )
    requests = endless_requests(plan)
    stages = measure_stages(batches, requests, 1e-9)
    assert (stages.num_images, next(requests).step) == (16, 2), "one batch to warm up, one that counts"
    assert stages.encoded_bytes == index.size[plan.batch(1).ids].sum()
