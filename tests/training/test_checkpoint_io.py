"""Saving while training goes on: the snapshot, one save in flight, and saves that fail."""

import errno
import os
import resource
import threading
from collections import OrderedDict

import pytest
import torch

from vitlight.errors import InputError
from vitlight.training.checkpoint import beside_checkpoint, checkpoint_path, newest_checkpoint
from vitlight.training.checkpoint_io import CheckpointWriter, NotSaved
from vitlight.training.host_copy import HostCopy


def final_path(beside):
    return beside.with_name(beside.name.removeprefix(".").removesuffix(".tmp"))


def writer_for(in_background=True, then=lambda path: None):
    return CheckpointWriter(in_background, final_path, then)


def save(writer, folder, step, state):
    writer.settle_before_save()
    writer.save_checkpoint(state, beside_checkpoint(checkpoint_path(folder, step)))


def load(folder):
    found = newest_checkpoint(folder)
    assert found is not None
    return torch.load(found[1], weights_only=True)


@pytest.fixture
def trained():
    """A network and its optimizer after a step, and a function that makes another."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).to(
        memory_format=torch.channels_last
    )
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)

    def step():
        optimizer.zero_grad()
        network(torch.randn(2, 3, 5, 5)).square().sum().backward()
        optimizer.step()

    step()
    return network, optimizer, step


class Gate:
    """Holds a save up, in its thread, until it is opened."""

    def __init__(self):
        self.entered, self.opened = threading.Event(), threading.Event()

    def __call__(self, path):
        self.entered.set()
        assert self.opened.wait(60)


def test_a_copy_is_equal_in_values_types_and_order_in_memory(trained):
    network, optimizer, _ = trained
    state = {"state_dict": network.state_dict(), "optimizer_states": [optimizer.state_dict()], "step": 3, "none": None}
    copied = HostCopy().take(state)
    assert copied["step"] == 3 and copied["none"] is None
    assert type(copied["state_dict"]) is OrderedDict
    assert copied["state_dict"]._metadata == network.state_dict()._metadata
    assert copied["optimizer_states"][0]["param_groups"] == optimizer.state_dict()["param_groups"]
    for name, tensor in network.state_dict().items():
        other = copied["state_dict"][name]
        assert torch.equal(tensor, other) and tensor.dtype == other.dtype and tensor.stride() == other.stride()
        assert tensor.data_ptr() != other.data_ptr()
    moments = optimizer.state_dict()["state"][0]
    assert torch.equal(copied["optimizer_states"][0]["state"][0]["exp_avg"], moments["exp_avg"])
    copied["optimizer_states"][0]["param_groups"][0]["lr"] = 7.0
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_the_memory_of_a_copy_is_used_again_and_follows_what_changes():
    copy = HostCopy()
    first = copy.take({"a": torch.ones(5), "b": [torch.zeros(2), torch.zeros(2)]})
    places = [first["a"].data_ptr(), first["b"][0].data_ptr(), first["b"][1].data_ptr()]
    second = copy.take({"a": torch.full((5,), 2.0), "b": [torch.ones(2), torch.full((2,), 3.0)]})
    assert [second["a"].data_ptr(), second["b"][0].data_ptr(), second["b"][1].data_ptr()] == places
    assert second["a"].tolist() == [2.0] * 5 and second["b"][1].tolist() == [3.0, 3.0]
    third = copy.take({"a": torch.ones(5, dtype=torch.bfloat16), "c": torch.ones(3)[::2]})
    assert third["a"].dtype == torch.bfloat16 and third["c"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("in_background", [True, False])
def test_what_training_does_after_a_save_is_not_in_it(trained, tmp_path, in_background):
    network, optimizer, step = trained
    gate = Gate()
    if not in_background:
        gate.opened.set()
    writer = writer_for(in_background, gate)
    expected = HostCopy().take({"state_dict": network.state_dict(), "optimizer_states": optimizer.state_dict()})
    writer.save_checkpoint(
        {"state_dict": network.state_dict(), "optimizer_states": optimizer.state_dict()},
        beside_checkpoint(checkpoint_path(tmp_path, 1)),
    )
    for _ in range(3):
        step()
    gate.opened.set()
    writer.wait()
    found = load(tmp_path)
    for name, tensor in expected["state_dict"].items():
        assert torch.equal(found["state_dict"][name], tensor)
    for index, moments in expected["optimizer_states"]["state"].items():
        for name, tensor in moments.items():
            assert torch.equal(found["optimizer_states"]["state"][index][name], tensor)
    assert not torch.equal(network.state_dict()["0.weight"], expected["state_dict"]["0.weight"])


def test_the_caller_goes_on_while_a_save_is_written_and_the_next_save_waits_and_is_counted(tmp_path):
    gate = Gate()
    writer = writer_for(then=gate)
    save(writer, tmp_path, 1, {"value": torch.ones(4)})
    assert gate.entered.wait(60)  # so the caller was back before the save was over
    threading.Timer(0.2, gate.opened.set).start()
    save(writer, tmp_path, 2, {"value": torch.full((4,), 2.0)})
    writer.wait()
    assert (writer.num_saves, writer.num_waits) == (2, 1)
    assert writer.wait_seconds > 0
    assert load(tmp_path)["value"].tolist() == [2.0] * 4
    assert torch.load(checkpoint_path(tmp_path, 1), weights_only=True)["value"].tolist() == [1.0] * 4


@pytest.mark.parametrize("in_background", [True, False])
def test_a_full_disk_is_one_line_and_leaves_what_was_there(tmp_path, in_background, capsys):
    """The kernel refuses to write past the limit, as it does on a full disk."""
    writer = writer_for(in_background)
    save(writer, tmp_path, 1, {"value": torch.ones(4)})
    writer.wait()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, before[1]))
    try:
        save(writer, tmp_path, 2, {"value": torch.ones(100_000)})
        writer.settle()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"{checkpoint_path(tmp_path, 2)} could not be saved: {os.strerror(errno.EFBIG)}; " in said
    assert "MiB are free there" in said
    with pytest.raises(InputError, match="could not be saved: File too large"):
        writer.wait()
    assert newest_checkpoint(tmp_path) == (1, checkpoint_path(tmp_path, 1))
    assert len(list(tmp_path.iterdir())) == 2  # nothing takes up space
    save(writer, tmp_path, 3, {"value": torch.ones(100_000)})
    writer.wait()  # a later one went well
    assert newest_checkpoint(tmp_path) == (3, checkpoint_path(tmp_path, 3))


def test_an_error_of_what_follows_a_save_is_told_and_the_checkpoint_is_whole(tmp_path, capsys):
    def fail(path):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    writer = writer_for(then=fail)
    save(writer, tmp_path, 1, {"value": torch.ones(4)})
    with pytest.raises(InputError, match="No space left on device"):
        writer.wait()
    assert newest_checkpoint(tmp_path) == (1, checkpoint_path(tmp_path, 1))


def test_what_the_ranks_agree_on_is_raised_by_all(tmp_path):
    writer = writer_for()
    save(writer, tmp_path, 1, {"value": torch.ones(4)})
    with pytest.raises(NotSaved, match="another rank's disk"):
        writer.wait(lambda mine: "another rank's disk" if mine is None else mine)
    writer.wait()
