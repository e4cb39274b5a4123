"""A checkpoint that every rank writes a part of: whole or passed over, and read by any number of processes."""

import json
import os
import pickle
import shutil
import signal
import time

import pytest
import torch

from tests.training.ranks import Ranks, assert_equal_training, state_of
from tests.training.test_run import assert_bit_equal, rows_without_times
from tests.training.zygote import open_zygote
from vitlight.cli import main
from vitlight.models import build_model
from vitlight.models.checkpoint_folder import read_checkpoint_folder
from vitlight.models.weights import load_weights
from vitlight.training.checkpoint import newest_checkpoint
from vitlight.training.record import RunDirectory
from vitlight.training.resolve import resolve_run

SMALL = {"depth": 1, "width": 16, "mlp_dim": 32, "num_heads": 2, "pool": "cls"}
OPTIONS = (f"--model.model_options={json.dumps(SMALL)}", "--run.rank_timeout_seconds=60")
FSDP2 = "--trainer.strategy=fsdp2"


@pytest.fixture(scope="module")
def ranks(tiny_shards, tmp_path_factory):
    with open_zygote() as zygote:
        yield Ranks(zygote, tiny_shards, tmp_path_factory.mktemp("ranks"))


@pytest.fixture(scope="module")
def split(ranks):
    """A finished run of two ranks."""
    return ranks.fit("split", 2, *OPTIONS, FSDP2)


def newest(run: RunDirectory):
    found = newest_checkpoint(run.checkpoints)
    assert found is not None
    return found[1]


def test_every_rank_writes_its_half_and_the_digest_is_of_all_files(split, capsys):
    folder = newest(split)
    names = sorted(path.name for path in folder.iterdir())
    assert names == [".metadata", "__0_0.distcp", "__1_0.distcp", "rest.pt"]
    sizes = [(folder / name).stat().st_size for name in names[1:3]]
    assert max(sizes) < 1.3 * min(sizes)
    lines = folder.with_suffix(".digest").read_text().splitlines()
    assert [line.split("  ")[1] for line in lines] == names
    rest = torch.load(folder / "rest.pt", weights_only=True)
    assert all(tensor.is_meta for tensor in rest["state_dict"].values())
    assert rest["state_dict"]["model.head.weight"].shape == (4, 16)


def test_a_part_of_another_content_is_not_whole(ranks, split, tmp_path, capsys):
    copy = ranks.go_back(split, "flipped")
    whole = newest(copy)
    shutil.copytree(newest(split), whole.with_name("step-000000012.ckpt"))
    shutil.copyfile(newest(split).with_suffix(".digest"), whole.with_name("step-000000012.digest"))
    assert newest_checkpoint(copy.checkpoints)[0] == 12
    part = whole.with_name("step-000000012.ckpt") / "__1_0.distcp"
    part.write_bytes(part.read_bytes()[:-1] + b"X")
    assert newest_checkpoint(copy.checkpoints)[0] == 10
    assert "step-000000012.ckpt is not whole and is passed over" in capsys.readouterr().err


def test_parts_hold_what_one_file_holds(ranks, split):
    for name, option in {
        "one file": "--run.checkpoint_sharded=false",
        "in place": "--run.checkpoint_async=false",
    }.items():
        run = ranks.fit(name, 2, *OPTIONS, FSDP2, option)
        assert run.path.name == split.path.name
        assert newest(run).is_file() == (name == "one file")
        for key in ("state_dict", "optimizer_states", "vitlight"):
            assert_bit_equal(state_of(run)[key], state_of(split)[key], key)


def test_the_same_ranks_go_on_to_the_bit(ranks, split):
    resumed = ranks.go_back(split, "same")
    assert "resumes at step 10 of 12" in ranks.start(2, ranks.args("same", *OPTIONS, FSDP2))
    assert rows_without_times(resumed) == rows_without_times(split)
    for key in ("state_dict", "optimizer_states"):
        assert_bit_equal(state_of(resumed)[key], state_of(split)[key], key)


@pytest.mark.parametrize(
    ("num_ranks", "options"),
    [(1, ()), (2, ("--trainer.strategy=ddp",)), (4, (FSDP2,))],
    ids=["one process", "two replicas", "four parts"],
)
def test_others_go_on(ranks, split, num_ranks, options):
    name = f"on {num_ranks}"
    resumed = ranks.go_back(split, name)
    assert "resumes at step 10 of 12" in ranks.start(num_ranks, ranks.args(name, *OPTIONS, *options))
    assert resumed.read_result()["num_ranks"] == num_ranks
    assert_equal_training(resumed, split)
    (moments,), (expected,) = (state_of(run)["optimizer_states"] for run in (resumed, split))
    for number, state in moments["state"].items():
        torch.testing.assert_close(state, expected["state"][number], rtol=1e-3, atol=1e-6)


def test_one_process_evaluates_it_and_reads_its_weights(split, tmp_path, capfd):
    folder, result = newest(split), split.read_result()
    assert main(["test", f"--ckpt_path={folder}"]) == 0
    printed = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert printed["top1_count"] == result["top1_count"]
    assert printed["loss"] == pytest.approx(result["loss"], rel=1e-6)
    model = build_model("vit_nano1", num_classes=4, image_size=28, **SMALL)
    assert load_weights(model, folder).layout == "vitlight"
    state = read_checkpoint_folder(folder)["state_dict"]
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[f"model.{name}"]), name
    options = [f"--option={name}={value}" for name, value in SMALL.items()]
    assert main(["convert", str(folder), str(tmp_path / "w.safetensors"), "--arch=vit_nano1", *options]) == 0
    assert "(vitlight)" in capfd.readouterr().out


def test_a_run_starts_from_its_weights(ranks, split, capfd):
    folder = newest(split)
    args = ranks.args("from weights", *OPTIONS, f"--model.weights={folder}", "--model.duration.samples=16")
    assert main([*args, "--model.optimizer.lr=0.0", "--trainer.devices=1"]) == 0
    assert "tensors in vitlight's layout" in capfd.readouterr().err
    run = RunDirectory(resolve_run([*args, "--model.optimizer.lr=0.0"]).run_dir)
    assert run.read_result()["loss"] == pytest.approx(split.read_result()["loss"], rel=1e-6)
    assert len(run.read_result()["weights_digest"]) == 32


def test_two_ranks_evaluate_their_parts(ranks, split):
    said = ranks.start(2, ["test", f"--ckpt_path={newest(split)}", "--trainer.devices=auto", FSDP2])
    printed = json.loads(next(line for line in said.splitlines() if line.startswith("{")))
    assert printed["top1_count"] == split.read_result()["top1_count"]


def test_a_last_save_that_fails_ends_every_rank_alike(ranks):
    breaks = [{"class_path": "tests.training.poison.BreakCheckpoints", "init_args": {"step": 5}}]
    args = ranks.args("unwritable", *OPTIONS, FSDP2, f"--trainer.callbacks={json.dumps(breaks)}")
    said = ranks.start(2, args, expected=2).splitlines()
    told = [line for line in said if "step-000000012.ckpt could not be saved: " in line]
    assert [line.split()[1] for line in told] == ["checkpoint", "error:", "error:"], said


def test_a_whole_checkpoint_is_found_after_kills_of_both_ranks_while_they_save(ranks, split):
    args = ranks.args("killed", *OPTIONS, FSDP2, "--run.checkpoint_every_steps=1", "--run.keep_checkpoints=1")
    run = RunDirectory(resolve_run(args).run_dir)
    for attempt, delay in enumerate((0.0, 0.004, 0.02)):
        before = newest_checkpoint(run.checkpoints)
        pids = ranks.begin(2, args, ranks.root / f"killed-{attempt}")
        deadline = time.monotonic() + 60
        aim = f".step-{(before[0] if before else 0) + 3:09d}.ckpt.tmp"
        while not (run.checkpoints / aim).exists() and time.monotonic() < deadline:
            time.sleep(0.0005)
        time.sleep(delay)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        codes = [ranks.zygote.exit_code(pid) for pid in pids]
        assert codes == [-signal.SIGKILL] * 2, (ranks.root / f"killed-{attempt}").read_text()
        after = newest_checkpoint(run.checkpoints)
        assert after is not None and after[0] >= (before[0] if before else 0) + 1
    ranks.start(2, args)
    assert rows_without_times(run) == rows_without_times(split)
    assert_bit_equal(state_of(run)["state_dict"], state_of(split)["state_dict"])


def test_no_code_of_a_checkpoint_is_run(split, tmp_path):
    folder = tmp_path / "step-000000012.ckpt"
    shutil.copytree(newest(split), folder)

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/run",)

    for payload in (Evil(), os.system, torch.load):
        (folder / ".metadata").write_bytes(pickle.dumps(payload))
        with pytest.raises(pickle.UnpicklingError, match="has no place in a checkpoint"):
            read_checkpoint_folder(folder)
    assert not (tmp_path / "run").exists()


def test_sharded_checkpoints_of_whole_weights_are_refused(fit_args, capsys):
    assert main([*fit_args, "--run.checkpoint_sharded=true"]) == 2
    assert "run.checkpoint_sharded=true needs split weights" in capsys.readouterr().err
