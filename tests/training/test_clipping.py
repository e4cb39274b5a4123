import pytest
import torch

from tests.reference_libraries import reference
from tests.training.test_run import final_state
from vitlight.cli import main
from vitlight.models import build_model
from vitlight.training import classifier
from vitlight.training.clipping import clip_adaptively
from vitlight.training.record import RunDirectory
from vitlight.training.resolve import resolve_run


def with_gradients(arch: str, scale: float) -> torch.nn.Module:
    torch.manual_seed(0)
    model = build_model(arch, num_classes=10, image_size=32)
    for parameter in model.parameters():
        parameter.grad = scale * torch.randn(parameter.shape)
    return model


@pytest.mark.parametrize("arch", ["vit_nano1", "resnet_nano1"])
@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e-5])
def test_units_are_clipped_as_in_timm_and_the_classifier_is_not(arch, scale):
    ours, theirs, before = (with_gradients(arch, scale) for _ in range(3))
    clip_adaptively(ours, 0.01)
    reference("timm.utils.agc").adaptive_clip_grad(list(theirs.parameters()), 0.01)
    changed = 0
    for (name, left), right, raw in zip(ours.named_parameters(), theirs.parameters(), before.parameters(), strict=True):
        expected = raw.grad if name.startswith("head.") else right.grad
        torch.testing.assert_close(left.grad, expected, rtol=1e-6, atol=0, msg=name)
        changed += not torch.equal(left.grad, raw.grad)
    num_parameters = len(list(ours.parameters()))
    assert changed == num_parameters - 2 if scale == 1.0 else changed < num_parameters - 2


def test_a_unit_comes_out_at_the_part_asked_for_and_keeps_its_direction():
    model = with_gradients("vit_nano1", 1.0)
    weight = model.blocks[0].mlp.fc1.weight
    raw = weight.grad.clone()
    clip_adaptively(model, 0.02)
    torch.testing.assert_close(weight.grad.norm(dim=1), 0.02 * weight.detach().norm(dim=1))
    torch.testing.assert_close(torch.cosine_similarity(weight.grad, raw), torch.ones(len(raw)))
    bias = model.blocks[0].attn.qkv.bias  # starts at 0, where the least norm of 1e-3 counts
    torch.testing.assert_close(bias.grad.norm(), torch.tensor(0.02 * 1e-3))


def test_runs_clip_each_step_once_and_accumulation_changes_nothing(fit_args, monkeypatch):
    """Clipping what is accumulated, as one batch of the same images would be; about half of all tensors are clipped."""
    calls = []

    def spy(model: torch.nn.Module, threshold: float) -> None:
        before = [parameter.grad.clone() for parameter in model.parameters()]
        clip_adaptively(model, threshold)
        after = [parameter.grad for parameter in model.parameters()]
        calls.append(sum(not torch.equal(*pair) for pair in zip(before, after, strict=True)) / len(after))

    monkeypatch.setattr(classifier, "clip_adaptively", spy)
    states = []
    for accumulate in (1, 4):
        changes = [f"--trainer.accumulate_grad_batches={accumulate}", f"--run.name=by{accumulate}"]
        args = [*fit_args, *changes, "--model.optimizer.adaptive_clip=0.001", "--data.val_fraction=0"]
        assert main(args) == 0
        states.append(final_state(RunDirectory(resolve_run(args).run_dir))["state_dict"])
    assert len(calls) == 2 * 12
    # At the first step the head's zeros let no gradient through.
    assert min(calls[1:12]) == pytest.approx(min(calls[13:]), abs=0.1)
    assert min(calls[1:12]) > 0.4
    for name, value in states[0].items():
        torch.testing.assert_close(value, states[1][name], rtol=1e-4, atol=1e-5, msg=name)
