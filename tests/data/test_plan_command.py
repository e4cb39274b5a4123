import json
from types import SimpleNamespace

import pytest
import torch
import webdataset

from tests.conftest import ROOT, tiny_sample
from vitlight.cli import main
from vitlight.data.augment import Augmentation
from vitlight.data.datamodule import ShardedImages
from vitlight.data.decode import decode_image
from vitlight.data.index import load_index

PLAIN = Augmentation(min_area=1.0, jitter_ratio=False, flip=False)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """53 images in shards of 1, 7, 23, 2 and 20."""
    folder = tmp_path_factory.mktemp("uneven")
    rest = iter(range(53))
    for number, size in enumerate((1, 7, 23, 2, 20)):
        with webdataset.TarWriter(str(folder / f"{number}.tar"), encoder=False) as writer:
            for sample in (tiny_sample(next(rest), "train") for _ in range(size)):
                label = str(sample.label).encode()
                writer.write({"__key__": sample.key, sample.extension: sample.image, "cls": label})
    return folder


@pytest.fixture
def plan(capsys):
    """The lines that `vitlight data plan` prints."""

    def lines(source, *options) -> list[str]:
        assert main(["data", "plan", str(source), *map(str, options)]) == 0
        return capsys.readouterr().out.splitlines()

    return lines


def by_batch(keys: list[str], size: int) -> list[list[str]]:
    return [keys[i : i + size] for i in range(0, len(keys), size)]


SUBSETS = [
    pytest.param([], 53, id="all"),
    pytest.param(["--num-train-samples", 24], 24, id="number"),
    pytest.param(["--val-fraction", 0.2, "--train-fraction", 0.5], 21, id="val and fraction"),
    pytest.param(["--window-shards", 2, "--num-streams", 2], 53, id="streams"),
]


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4])
@pytest.mark.parametrize(("subset", "count"), SUBSETS)
def test_ranks_share_every_epoch(plan, uneven, subset, count, num_ranks):
    options = ["--global-batch-size", 12, "--seed", 3, *subset]
    for epoch in range(3):
        alone = plan(uneven, *options, "--keys", "--epoch", epoch)
        parts = [
            plan(uneven, *options, "--keys", "--epoch", epoch, "--ranks", num_ranks, "--rank", rank)
            for rank in range(num_ranks)
        ]
        assert len(set(alone)) == len(alone) == count
        assert sorted(key for part in parts for key in part) == sorted(alone)
        if subset == [] and epoch == 0:
            assert len(alone) == len(load_index(uneven))
    # From the middle of an epoch on, in whole batches: the ranks' parts laid side by side are what one rank draws.
    options += ["--keys", "--step", 3, "--num-batches", 4]
    parts = [
        by_batch(plan(uneven, *options, "--ranks", num_ranks, "--rank", rank), 12 // num_ranks)
        for rank in range(num_ranks)
    ]
    assert [key for batch in zip(*parts, strict=True) for part in batch for key in part] == plan(uneven, *options)


def test_a_later_start_is_the_end_of_the_list(plan, uneven):
    options = ["--global-batch-size", 12, "--keys"]
    for epoch in range(3):
        whole = plan(uneven, *options, "--epoch", epoch)
        # An epoch of 53 begins where the last one ended, within a batch: 53 = 4 * 12 + 5, 106 = 8 * 12 + 10.
        first = (12, 7, 2)[epoch]
        assert plan(uneven, *options, "--epoch", epoch, "--start-batch", 0) == whole
        assert plan(uneven, *options, "--epoch", epoch, "--start-batch", 1) == whole[first:]
        assert plan(uneven, *options, "--epoch", epoch, "--start-batch", 3) == whole[first + 24 :]
        assert (
            plan(uneven, *options, "--epoch", epoch, "--start-batch", 1, "--num-batches", 2)
            == whole[first : first + 24]
        )
    epochs = [key for epoch in range(3) for key in plan(uneven, *options, "--epoch", epoch)]
    assert plan(uneven, *options, "--step", 0, "--num-batches", 13) == epochs[: 13 * 12]


def test_other_seeds_other_orders_of_the_same_images(plan, uneven):
    orders = [plan(uneven, "--keys", "--seed", seed, "--num-train-samples", 30) for seed in range(3)]
    assert len({tuple(order) for order in orders}) == 3
    assert len({tuple(sorted(order)) for order in orders}) == 1


def loaded(data: ShardedImages, num_steps: int, num_ranks=1, rank=0, num_micro=1):
    """(labels, images) that the loader gives."""
    data.trainer = SimpleNamespace(
        global_rank=rank, world_size=num_ranks, accumulate_grad_batches=num_micro, num_nodes=1
    )
    data.prepare()
    data.num_steps = num_steps
    batches = list(data.train_dataloader())
    return [label for batch in batches for label in batch["label"].tolist()], torch.cat([b["image"] for b in batches])


def assert_images_have_keys(keys: list[str], images: torch.Tensor) -> None:
    compared = 0
    for key, image in zip(keys, images, strict=True):
        split, number = key.split("/")
        sample = tiny_sample(int(number), split)
        if sample.extension == "png":  # a JPEG's colours are not interpolated in training
            assert torch.equal(image.permute(1, 2, 0), torch.from_numpy(decode_image(sample.image))), key
            compared += 1
    assert compared > len(keys) // 2


@pytest.mark.parametrize("changes", [{}, {"num_train_samples": 30, "val_fraction": 0.1}, {"num_repeats": 2}])
def test_keys_are_those_of_the_loader(plan, uneven, changes):
    settings = {
        "global_batch_size": 12,
        "seed": 5,
        "val_fraction": 0.0,
        "window_shards": 2,
        "num_streams": 2,
        **changes,
    }
    data = ShardedImages(str(uneven), num_classes=4, image_size=28, augmentation=PLAIN, **settings)
    options = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
    options += ["--ranks", 2, "--rank", 1, "--accumulate", 3, "--keys", "--step", 0, "--num-batches", 11]
    labels, images = loaded(data, 11, num_ranks=2, rank=1, num_micro=3)
    keys = plan(uneven, *options)
    assert len(keys) == 66
    assert [int(key.split("/")[1]) % 4 for key in keys] == labels
    assert_images_have_keys(keys, images)


def experiment_of(args: list[str], folder) -> str:
    """What a run of this command would leave as its experiment.yaml."""
    from vitlight.training.experiment import ExperimentCLI

    path = folder / "experiment.yaml"
    path.write_text(ExperimentCLI(args).dump())
    return str(path)


def test_the_record_of_a_run_tells_what_it_drew(plan, fit_args, capsys, tiny_shards):
    from vitlight.training.experiment import ExperimentCLI
    from vitlight.training.resolve import resolve_run

    plain = [
        "--data.augmentation.min_area=1",
        "--data.augmentation.jitter_ratio=false",
        "--data.augmentation.flip=false",
    ]
    args = [*fit_args, *plain, "--seed_everything=4", "--data.num_train_samples=100"]
    assert main(args) == 0
    capsys.readouterr()
    record = resolve_run(args).run_dir / "experiment.yaml"
    labels, images = loaded(ExperimentCLI(args).build_data(), 12)
    keys = plan(record, "--keys", "--step", 0, "--num-batches", 12)
    assert [int(key.split("/")[1]) % 4 for key in keys] == labels
    assert_images_have_keys(keys, images)
    assert len(set(keys)) == 100
    # What is given beside the file holds instead of it.
    assert plan(record, "--keys", "--seed", 1) == plan(
        tiny_shards / "train",
        *("--keys", "--seed", 1, "--val-fraction", 0.2, "--num-train-samples", 100, "--global-batch-size", 16),
    )
    summary = json.loads("".join(plan(record, "--json")))
    result = json.loads((record.parent / "result.json").read_text())
    assert (summary["steps"], summary["samples_seen"]) == (12, result["samples_seen"])
    assert summary["unique_samples_seen"] == result["unique_samples_seen"]
    assert summary["data_digest"] == result["data_digest"].partition("+")[0]
    assert json.loads("".join(plan(record, "--json", "--epochs", 3)))["steps"] == 19  # 300 / 16 = 18.75


def test_the_record_of_a_mixture_with_repeats(plan, fit_args, tiny_shards, tmp_path):
    from vitlight.training.experiment import ExperimentCLI

    train = json.dumps({str(tiny_shards / "train"): 0.75, str(tiny_shards / "test"): 0.25})
    args = [*fit_args, f"--data.train={train}", "--data.num_repeats=2", "--data.num_workers=2"]
    args += [
        "--data.augmentation.min_area=1",
        "--data.augmentation.jitter_ratio=false",
        "--data.augmentation.flip=false",
    ]
    args += ["--trainer.accumulate_grad_batches=2"]
    record = experiment_of(args, tmp_path)
    data = ExperimentCLI(args).build_data()
    data.num_workers = 0
    labels, images = loaded(data, 6, num_micro=2)
    draws = [json.loads(line) for line in plan(record, "--keys", "--step", 0, "--num-batches", 6, "--json")]
    assert [draw["label"] for draw in draws] == labels
    assert_images_have_keys([draw["key"] for draw in draws], images)
    # 8 different images a step, 3/4 of them from train/
    keys = [draw["key"] for draw in draws]
    assert [sum(key.startswith("train/") for key in set(batch)) for batch in by_batch(keys, 16)] == [6] * 6
    summary = json.loads("".join(plan(record, "--json")))
    # train 200 - 40, test 61 - 12
    assert (summary["num_train_samples"], summary["num_val_samples"]) == (160 + 49, 40 + 12)
    assert (summary["rank_batch_size"], summary["num_workers"]) == (8, 2)
    assert summary["batches_per_worker"] == [12, 12]
    sizes = [load_index(tiny_shards / name).size for name in ("train", "test")]
    # Of 192 samples, by weight; a mean over the images trained on, which is close to that over all.
    assert summary["mean_image_bytes_per_rank"] == pytest.approx(144 * sizes[0].mean() + 48 * sizes[1].mean(), rel=0.02)


def test_the_record_of_other_labels(plan, fit_args, tmp_path):
    folder = tmp_path / "multi"
    folder.mkdir()
    with webdataset.TarWriter(str(folder / "0.tar"), encoder=False) as writer:
        for i in range(20):
            sample = tiny_sample(i, "train")
            about = json.dumps({"meta": {"classes": [i % 4, (i + 1) % 4][: 1 + i % 2]}}).encode()
            writer.write({"__key__": sample.key, sample.extension: sample.image, "json": about})
    args = [*fit_args, f"--data.train={folder}", "--data.labels.multi=true", "--data.labels.field=meta.classes"]
    record = experiment_of([*args, "--data.val_fraction=0", "--data.test=null", "--model.loss=sigmoid"], tmp_path)
    draws = [json.loads(line) for line in plan(record, "--keys", "--json")]
    assert sorted(draw["key"] for draw in draws) == [f"train/{i:05d}" for i in range(20)]
    for draw in draws:
        i = int(draw["key"].split("/")[1])
        assert draw == {
            "step": draw["step"],
            "epoch": 0,
            "shard": str(folder / "0.tar"),
            "label": [i % 4, (i + 1) % 4][: 1 + i % 2],
            "key": draw["key"],
        }
    assert [draw["step"] for draw in draws] == [0] * 16 + [1] * 4


def test_the_numbers(plan, tiny_shards):
    options = ["--global-batch-size", 24, "--val-fraction", 0.15, "--epochs", 2.5, "--ranks", 3, "--accumulate", 2]
    summary = json.loads("".join(plan(tiny_shards / "train", *options, "--workers", 4, "--json")))
    index = load_index(tiny_shards / "train")
    assert [summary.pop(name) for name in ("plan_digest", "data_digest")][1] == index.digest
    image_bytes = summary.pop("image_bytes")
    assert image_bytes == pytest.approx(0.85 * index.size.sum(), rel=0.02)
    assert summary == {
        "num_samples": 200,
        "num_shards": 7,
        "num_classes": 4,
        "num_val_samples": 30,
        "num_train_samples": 170,
        "steps": 18,  # 2.5 * 170 / 24 = 17.7, to nearest as in a run
        "samples_seen": 432,
        "epochs": 432 / 170,
        "unique_samples_seen": 170,
        "global_batch_size": 24,
        "num_ranks": 3,
        "samples_per_rank": 144,
        "rank_batch_size": 4,
        "num_workers": 4,
        "batches_per_worker": [9, 9],  # 18 * 2 / 4
        "mean_image_bytes_per_rank": round(image_bytes / 170 * 144),
        "shards_read_at_once": 7,
        "bytes_of_shards_read_at_once": sum(path.stat().st_size for path in (tiny_shards / "train").glob("*.tar")),
        "seed": 0,
    }
    table = dict(line.split(maxsplit=1) for line in plan(tiny_shards / "train", *options, "--workers", 5))
    assert table["batches_per_worker"] == "7 to 8"
    assert table["samples_seen"] == "432"
    assert table["image_bytes"] == f"{image_bytes:,}"
    few = json.loads("".join(plan(tiny_shards / "train", "--epochs", 0.001, "--window-shards", 3, "--json")))
    assert (few["steps"], few["shards_read_at_once"], few["unique_samples_seen"]) == (1, 3, 200)


def test_a_duration_in_samples_or_flops(plan, fit_args, tmp_path, capsys):
    record = experiment_of([*fit_args, "--model.duration.min_samples=400"], tmp_path)
    assert json.loads("".join(plan(record, "--json")))["steps"] == 25
    args = [*fit_args, "--model.duration.samples=null", "--model.duration.train_flops=1.0e+9"]
    record = experiment_of(args, tmp_path)
    assert main(["data", "plan", record]) == 2
    assert "model.duration.train_flops needs the model to become steps; give --epochs" in capsys.readouterr().err
    assert json.loads("".join(plan(record, "--json", "--epochs", 1)))["steps"] == 10
    assert len(plan(record, "--keys")) == 160


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--ranks", "3"],
            "data.global_batch_size=16 is not a multiple of 3 (3 ranks x 1 accumulated batches); use 15 or 18",
        ),
        (["--keys", "--ranks", "2", "--rank", "2"], "--rank=2 is not in 0 to 1: --ranks=2"),
        (["--ranks", "two"], "argument --ranks: invalid int value: 'two'; see `vitlight data plan --help`"),
        (["--nosuch"], "unrecognized arguments: --nosuch"),
        (["--rank", "0"], "--rank=0 needs --keys"),
        (["--start-batch", "3"], "--start-batch=3 needs --keys"),
        (["--keys", "--step", "1"], "--step needs --num-batches"),
        (
            ["--keys", "--step", "1", "--epoch", "0", "--num-batches", "1"],
            "--step=1 stands for --epoch and --start-batch",
        ),
        (["--keys", "--start-batch", "13"], "--start-batch=13 is not in 0 to 12, the global batches of epoch 0"),
        (["--keys", "--epoch", "-1"], "--epoch=-1 is not at least 0"),
        (["--keys", "--num-batches", "0"], "--num-batches=0 is not at least 1"),
        (["--keys", "--epochs", "2"], "--epochs=2.0 says nothing about --keys"),
        (["--epochs", "inf"], "--epochs=inf is not a positive number"),
        (["--epochs", "nan"], "--epochs=nan is not a positive number"),
        (["--epochs", "-1"], "--epochs=-1.0 is not a positive number"),
        (["--workers", "-1"], "--workers=-1 is not at least 0"),
        (["--accumulate", "0"], "--accumulate=0 is not at least 1"),
        (["--val-fraction", "1"], "data.val_fraction=1.0 is not in [0, 1)"),
        (["--num-train-samples", "500"], "data.num_train_samples=500 asks for 500 images, but there are 200"),
        (["--num-train-samples", "5", "--train-fraction", "0.1"], "both given"),
        (["--window-shards", "0"], "data.window_shards=0 is not at least 1"),
        (["--num-repeats", "3"], "data.global_batch_size=16 is not a multiple of data.num_repeats=3"),
    ],
)
def test_bad_options_are_one_line(tiny_shards, capsys, options, message):
    assert main(["data", "plan", str(tiny_shards / "train"), "--global-batch-size", "16", *options]) == 2
    out, error = capsys.readouterr()
    assert message in error
    assert error.count("\n") == 1
    assert out == ""


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (None, [], "x.yaml: can't read this experiment: No such file or directory"),
        ("a: [", [], "x.yaml: can't read this experiment: while parsing"),
        ("just text", [], "x.yaml: no `data.train` in it"),
        ("data: {val_fraction: 0.1}", [], "x.yaml: no `data.train` in it"),
        ("data: {train: shards}", [], "x.yaml: no `data.global_batch_size` in it; give the experiment.yaml of a run"),
        ("data: {train: shards}", ["--label-field", "a"], "x.yaml says itself where labels and images are"),
    ],
)
def test_a_bad_record_is_one_line(tmp_path, capsys, content, options, message):
    path = tmp_path / "x.yaml"
    if content is not None:
        path.write_text(content)
    assert main(["data", "plan", str(path), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_the_base_experiment_is_no_record_of_a_run(capsys):
    assert main(["data", "plan", str(ROOT / "experiments" / "base.yaml")]) == 2
    assert "no `data.train` in it" in capsys.readouterr().err
