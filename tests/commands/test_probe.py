"""`vitlight probe`: the numbers of scikit-learn on the features of a run, the same for any number of ranks."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsClassifier

from tests.conftest import fit_args, tiny_sample
from tests.training.zygote import Zygote, free_port, open_zygote, rank_environment
from vitlight.analysis import load_runs
from vitlight.cli import main
from vitlight.commands.probe import _folder_name
from vitlight.data.shards import write_shards
from vitlight.models.weight_files import read_state, write_state
from vitlight.training.resolve import resolve_run
from vitlight.training.trained import load_trained

SHOTS = (1, 5, 10)


@pytest.fixture(scope="module")
def zygote():
    with open_zygote() as server:
        yield server


@pytest.fixture(scope="module")
def run(tiny_shards, tmp_path_factory) -> Path:
    args = [
        *fit_args.__wrapped__(tiny_shards, tmp_path_factory.mktemp("probed")),
        "--data.num_train_samples=40",
        "--data.eval_batch_size=16",
        '--model.model_options={"depth": 1, "width": 16, "mlp_dim": 32, "num_heads": 2}',
    ]
    assert main(args) == 0
    return resolve_run(args).run_dir


def probe(run: Path, *options: str, output: Path) -> dict:
    assert main(["probe", str(run), "--device=cpu", f"--output={output}", *options]) == 0
    return json.loads(output.read_text())["probes"]


def top1s(record: dict) -> dict[str, float]:
    return {score["column"]: score["top1"] for score in record["scores"]}


def plain_features(run: Path, split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ids, features (n, D) and labels of `train` (all that are not held out), `val` or `test`, one image at a time."""
    trained = load_trained(run)
    data = trained.open_data()
    index = data.test_index if split == "test" else data.train_indexes[0]
    ids = {"test": np.arange(61), "val": data.val_ids, "train": np.setdiff1d(np.arange(200), data.val_ids)}[split]
    found = []
    for i in ids:
        batch = next(iter(data.evaluation_loader("test" if split == "test" else "train", np.array([i]))))
        with torch.no_grad():
            tokens = trained.network.features(trained.normalize(batch["image"][:1]))
        pooled = tokens[:, 0] if trained.network.config.pool == "cls" else tokens.mean(1)
        found.append(pooled[0].double().numpy())
    return ids, np.array(found), index.label[ids].astype(np.int64)


def test_few_shot_and_neighbours_equal_scikit_learn_on_features_of_single_images(run, tiny_shards, tmp_path, capsys):
    record = probe(run, "--shots=1,5,10", "--seeds=3", "--knn=5,10", output=tmp_path / "probe.json")[""]
    scores = {score["column"]: score for score in record["scores"]}
    (ids, train, labels), (_, test, truth) = plain_features(run, "train"), plain_features(run, "test")
    for shots in SHOTS:
        for seed in range(3):
            # The very images that a run on so many images a class would train on.
            subset = load_trained(run).open_data(
                num_train_samples=None, num_train_samples_per_class=shots, subset_seed=seed
            )
            rows = np.concatenate([subset.plan.sources[0].rows.of_shard(shard) for shard in range(7)])
            chosen = np.searchsorted(ids, rows)
            x, mean, std = train[chosen], train[chosen].mean(0), train[chosen].std(0) + 1e-5
            x, new = (np.c_[(part - mean) / std, np.full(len(part), 100.0)] for part in (x, test))
            fitted = Ridge(alpha=1024, fit_intercept=False).fit(x, 2.0 * np.eye(4)[labels[chosen]] - 1)
            expected = int((fitted.predict(new).argmax(1) == truth).sum())
            assert scores[f"few_shot/{shots}_shot"]["num_correct"][seed] == expected
    for k in (5, 10):
        for suffix, weights in (("", lambda far: np.exp((1 - far) / 0.07)), ("_majority", "uniform")):
            their = KNeighborsClassifier(k, weights=weights, metric="cosine", algorithm="brute").fit(train, labels)
            assert scores[f"knn/{k}{suffix}"]["num_correct"] == [int((their.predict(test) == truth).sum())]
    assert (record["split"], record["num_val"], scores["knn/5"]["num_train"]) == ("test", 40, 160)
    shown = capsys.readouterr()
    assert "few_shot/10_shot_tuned" in shown.out
    assert "chosen on val" in shown.out
    assert "features of 261 images: 16 numbers each" in shown.err


def test_one_two_and_three_ranks_measure_the_same(run, zygote: Zygote, tmp_path):
    def measure(num_ranks: int) -> list[dict]:
        output, log, port = tmp_path / f"{num_ranks}.json", tmp_path / f"log-{num_ranks}", free_port()
        args = ["probe", str(run), "--device=cpu", f"--output={output}", "--shots=1,5", "--knn=3", "--linear", "--json"]
        envs = [rank_environment(rank, num_ranks, port) if num_ranks > 1 else {} for rank in range(num_ranks)]
        pids = [zygote.start(args, log, env) for env in envs]
        assert [zygote.exit_code(pid) for pid in pids] == [0] * num_ranks, log.read_text()
        (record,) = json.loads(output.read_text())["probes"].values()
        assert record["num_ranks"] == num_ranks
        return record["scores"]

    alone = measure(1)
    assert len(alone) == 4 + 2 + 4
    assert measure(2) == alone
    assert measure(3) == alone


def test_what_is_measured_later_stands_beside_what_was_and_in_tables(run, tmp_path, capsys):
    assert main(["probe", str(run), "--device=cpu", "--shots=5", "--seeds=2"]) == 0
    assert main(["probe", str(run), "--device=cpu", "--shots=none", "--knn=3", "--seeds=2"]) == 0
    record = json.loads((run / "probe.json").read_text())["probes"][""]
    columns = ["few_shot/5_shot", "few_shot/5_shot_tuned", "knn/3", "knn/3_majority"]
    assert [score["column"] for score in record["scores"]] == columns
    (row,) = load_runs(run).to_dict("records")
    assert {name: row[name] for name in columns} == top1s(record)
    assert row["few_shot/5_shot_std"] == record["scores"][0]["top1_std"]
    assert row["probe_split"] == "test"
    capsys.readouterr()
    assert main(["table", str(run), "--columns=run_id,few_shot/5_shot"]) == 0
    assert f"{100 * row['few_shot/5_shot']:.2f} %" in capsys.readouterr().out
    # With other subsets it would be a mixture: what was there gives way, and that is said.
    assert main(["probe", str(run), "--device=cpu", "--shots=1", "--seeds=3"]) == 0
    assert "is of other weights or images, and is replaced" in capsys.readouterr().err
    record = json.loads((run / "probe.json").read_text())["probes"][""]
    assert list(top1s(record)) == ["few_shot/1_shot", "few_shot/1_shot_tuned"]
    (run / "probe.json").unlink()


def test_weights_of_no_run_on_other_images(run, tmp_path, capsys):
    folder = tmp_path / "other" / "train"
    write_shards((tiny_sample(i, "train") for i in range(100, 180)), folder, samples_per_shard=30)
    weights = tmp_path / "weights.safetensors"
    write_state(load_trained(run).network.state_dict(), weights)
    options = [f"--option={pair}" for pair in ("depth=1", "width=16", "mlp_dim=32", "num_heads=2")]
    given = [f"--data.train={folder}", "--data.val_fraction=0.25", "--shots=5", "--seeds=2"]
    by_run = probe(run, *given, output=tmp_path / "run.json")
    assert list(by_run) == ["other"]
    record = by_run["other"]
    assert (record["split"], record["num_classes"], record["num_val"]) == ("val", 4, 20)
    assert list(top1s(record)) == ["few_shot/5_shot"]  # nothing is chosen on what is reported
    assert record["scores"][0]["num_images"] == 20
    by_weights = probe(
        weights,
        "--arch=vit_nano1",
        *options,
        *given,
        "--name=mine",
        "--crop=0.875",
        "--feature-dtype=float16",
        output=tmp_path / "w.json",
    )
    assert by_weights["mine"]["scores"][0]["top1"] == pytest.approx(top1s(record)["few_shot/5_shot"], abs=0.05)
    assert by_weights["mine"]["feature_dtype"] == "float16"
    bare = tmp_path / "bare.safetensors"
    write_state({name: value for name, value in read_state(weights).items() if not name.startswith("head.")}, bare)
    by_bare = probe(
        bare,
        "--arch=vit_nano1",
        *options,
        *given,
        "--name=mine",
        "--crop=0.875",
        "--feature-dtype=float16",
        output=tmp_path / "b.json",
    )
    assert by_bare["mine"]["scores"] == by_weights["mine"]["scores"]
    assert ", no classifier, " in by_bare["mine"]["source"]
    assert main(["probe", str(weights), "--arch=vit_nano1", *options]) == 2
    assert "these weights are of no run; name the images with --data.train" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--shots=5,x"], "--shots=5,x is not whole numbers with commas between them"),
        (["--shots=none"], "there is nothing to measure: ask for shots, nearest neighbours or linear probes"),
        (["--shots=500"], "500 shots: class 0 has "),
        (["--l2=0"], "l2=0.0 is not above 0"),
        (["--shots=0,1"], "shots: 0 is not at least 1"),
        (["--shots=none", "--knn=999"], "999 nearest neighbours of 160 training images; ask for fewer"),
        (["--name=x"], "--name=x names the images of --data.train, and there is none"),
        (["--data.num_classes=4"], "labels and classes are the run's own"),
        (["--data.train=/nowhere"], "/nowhere"),
        (["--devices=0"], "--devices=0"),
    ],
)
def test_what_can_not_be_measured_is_one_line(run, capsys, options, line):
    assert main(["probe", str(run), "--device=cpu", *options]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert error[-1].startswith("vitlight: error: ")
    assert line in error[-1]
    assert not (run / "probe.json").exists()


def test_a_file_that_is_no_file_of_probes_stays_as_it_is(run, tmp_path, capsys):
    (tmp_path / "other.json").write_text('{"a": 1}')
    assert (
        main(["probe", str(run), "--device=cpu", "--shots=1", "--seeds=1", f"--output={tmp_path / 'other.json'}"]) == 2
    )
    assert "can't hold what was measured" in capsys.readouterr().err
    assert (tmp_path / "other.json").read_text() == '{"a": 1}'


@pytest.mark.parametrize(
    ("shards", "name"),
    [
        ("data/cifar10/train", "cifar10"),
        ("data/cifar10/train/{000..009}.tar", "cifar10"),
        ("https://host/pets/train-{0..3}.tar", "pets"),
        ("flowers.tar", "flowers"),
        ("*.tar", "other"),
    ],
)
def test_other_images_are_called_by_their_folder(shards, name):
    assert _folder_name(shards) == name
