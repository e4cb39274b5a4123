"""Laws of several ranks, on real processes: what a run trains and counts does not depend on how many there are."""

import json

import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy

from tests.training.ranks import TOLERANCE, Ranks, assert_equal_training, losses
from tests.training.test_run import assert_bit_equal, final_state, rows_without_times
from tests.training.zygote import free_port, rank_environment
from vitlight.errors import InputError
from vitlight.models import build_model
from vitlight.training.record import RunDirectory
from vitlight.training.resolve import resolve_run
from vitlight.training.sharded import ShardedStrategy
from vitlight.training.strategy import ReplicatedStrategy, choose_strategy, launched_world
from vitlight.training.trainer import build_trainer


@pytest.fixture(scope="module")
def ranks(zygote, tiny_shards, tmp_path_factory):
    return Ranks(zygote, tiny_shards, tmp_path_factory.mktemp("ranks"))


BATCH_64 = ("--data.global_batch_size=64", "--model.duration.samples=384")


def test_one_batch_of_64_equals_four_of_16_and_four_ranks_of_16(ranks):
    whole = ranks.fit("64x1", 1, *BATCH_64)
    accumulated = ranks.fit("16x4", 1, *BATCH_64, "--trainer.accumulate_grad_batches=4")
    spread = ranks.fit("4 ranks", 4, *BATCH_64)
    for run in (accumulated, spread):
        assert run.path.name == whole.path.name
        assert_equal_training(run, whole)


@pytest.fixture(scope="module")
def three(ranks):
    """Three ranks: a number that a ring sums in another order for each part of the gradients."""
    return ranks.fit("3 ranks", 3, "--data.global_batch_size=24")


def test_counts_are_equal_on_1_to_4_ranks(ranks, three):
    """40 and 61 images: 3 ranks divide neither, 4 ranks not the second."""
    checkpoint = max(three.checkpoints.glob("*.ckpt"))
    for split, images in (("validate", 40), ("test", 61)):
        printed = []
        for num_ranks in (1, 2, 3, 4):
            args = [split, f"--ckpt_path={checkpoint}", "--data.eval_batch_size=7", "--trainer.devices=auto"]
            lines = [line for line in ranks.start(num_ranks, args).splitlines() if line.startswith("{")]
            printed += [json.loads(line) for line in lines]
        assert [each["num_images"] for each in printed] == [images] * 4
        assert len({(each["top1_count"], each["top5"]) for each in printed}) == 1
        assert [each["loss"] for each in printed] == pytest.approx([printed[0]["loss"]] * 4, rel=1e-7)


@pytest.mark.parametrize(
    ("num_ranks", "options"),
    [
        (3, ("--data.global_batch_size=24",)),
        (2, ("--model.arch=resnet_nano1", "--data.image_size=32")),
    ],
    ids=["3 ranks, whose sums depend on their order", "batch norm, whose statistics each rank has of its own"],
)
def test_a_resumed_run_is_bit_equal(ranks, num_ranks, options):
    name = f"whole on {num_ranks}"
    whole = ranks.fit(name, num_ranks, *options)
    resumed = ranks.go_back(whole, f"resumed on {num_ranks}")
    ranks.fit(f"resumed on {num_ranks}", num_ranks, *options)
    assert resumed.read_result()["status"] == "done"
    assert rows_without_times(resumed) == rows_without_times(whole)
    for key in ("state_dict", "optimizer_states"):
        assert_bit_equal(final_state(resumed)[key], final_state(whole)[key], key)


def test_two_ranks_equal_one_where_batch_norms_are_shared(ranks):
    options = ("--model.arch=resnet_nano1", "--data.image_size=32", "--trainer.sync_batchnorm=true")
    one, two = ranks.fit("norms of 1", 1, *options), ranks.fit("norms of 2", 2, *options)
    assert_equal_training(two, one)
    expected = final_state(one)["state_dict"]
    for name, value in final_state(two)["state_dict"].items():
        if "running_" in name:
            torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=2e-5)
        elif "num_batches_tracked" in name:
            assert value == expected[name] == 12


def test_gradients_in_bfloat16_train_almost_the_same(ranks):
    option = "--model.gradient_compression=bf16"
    plain, rounded = ranks.fit("float32", 2), ranks.fit("bfloat16", 2, option)
    assert rounded.path.name != plain.path.name  # another result, by its name
    assert losses(rounded) == pytest.approx(losses(plain), rel=2e-3)
    assert losses(rounded) != pytest.approx(losses(plain), rel=TOLERANCE)
    alone = ranks.args("bfloat16 alone", option)
    assert "model.gradient_compression=bf16 does nothing on one rank" in ranks.start(1, alone)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("arch", ["vit_nano1", "coatnet_nano1", "resnet_nano1", "bit_r50x1"])
def test_gradients_lie_as_their_weights_do(arch, memory_format):
    """Else DDP copies them into its buckets slowly, and warns."""
    model = build_model(arch, num_classes=4, image_size=32, in_channels=3).to(memory_format=memory_format)
    model(torch.randn(2, 3, 32, 32).to(memory_format=memory_format)).logsumexp(1).sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad.stride() != p.stride()] == []


@pytest.mark.filterwarnings("ignore:The `srun` command is available")
def test_ours_takes_the_place_of_lightnings():
    cpu = {"accelerator": "cpu"}
    assert choose_strategy({**cpu, "devices": 1}) == "auto"
    assert isinstance(choose_strategy({**cpu, "devices": 2}), ReplicatedStrategy)
    assert isinstance(choose_strategy({**cpu, "devices": 1, "num_nodes": 2}), ReplicatedStrategy)
    assert isinstance(choose_strategy({**cpu, "devices": 1, "strategy": "ddp"}), ReplicatedStrategy)
    assert isinstance(choose_strategy({**cpu, "devices": 2, "strategy": "fsdp2"}), ShardedStrategy)
    assert choose_strategy({**cpu, "devices": 2, "strategy": "ddp_find_unused_parameters_true"}) == (
        "ddp_find_unused_parameters_true"
    )


@pytest.fixture
def launched(monkeypatch):
    def launch(num_ranks: int, num_local: int) -> None:
        for name, value in rank_environment(0, num_ranks, free_port()).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(num_local))

    return launch


def test_torchrun_says_how_many_nodes_and_devices_there_are(launched):
    launched(6, 2)
    assert launched_world({"devices": "auto", "num_nodes": 1}) == {"devices": 2, "num_nodes": 3}
    assert launched_world({"devices": 2, "num_nodes": 3}) == {"devices": 2, "num_nodes": 3}
    with pytest.raises(InputError, match=r"trainer.num_nodes=2, but torchrun started 3 nodes of 2 processes"):
        launched_world({"num_nodes": 2})
    with pytest.raises(InputError, match=r"trainer.devices=4, but torchrun started 3 nodes of 2 processes"):
        launched_world({"devices": 4})
    launched(3, 2)
    with pytest.raises(InputError, match="started 3 ranks, not the same number on every node; 2 on this one"):
        launched_world({})


def test_without_torchrun_the_settings_count():
    assert launched_world({"devices": 4, "num_nodes": 2}) == {}


def test_an_elastic_world_of_one_is_a_plain_process(launched):
    launched(1, 1)
    trainer = build_trainer(accelerator="cpu", devices="auto", logger=False, enable_checkpointing=False)
    assert isinstance(trainer.strategy, SingleDeviceStrategy)
    assert trainer.world_size == 1


@pytest.mark.parametrize("way", ["in the background", "in place"])
def test_a_last_save_that_fails_ends_every_rank_alike(ranks, way):
    """Rank 0 alone writes; the others would end well, or wait for it."""
    breaks = [{"class_path": "tests.training.poison.BreakCheckpoints", "init_args": {"step": 5}}]
    args = ranks.args(
        f"unwritable {way}",
        f"--trainer.callbacks={json.dumps(breaks)}",
        f"--run.checkpoint_async={json.dumps(way == 'in the background')}",
        "--run.rank_timeout_seconds=60",
    )
    said = ranks.start(2, args, expected=2)
    told = [line for line in said.splitlines() if "step-000000012.ckpt could not be saved: Not a directory" in line]
    assert [line.split()[1] for line in told] == ["checkpoint", "error:", "error:"], said
    assert RunDirectory(resolve_run(args).run_dir).read_result()["status"] == "failed"
