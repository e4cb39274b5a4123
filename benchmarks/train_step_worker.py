"""One contender of train_step.py: builds its network, then trains as many steps as each line of its input says."""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

WARMUP_STEPS = {False: 2, True: 3}


def build_timm(
    case: dict[str, Any], contender: dict[str, Any], image_size: int
) -> tuple[nn.Module, torch.optim.Optimizer]:
    from tests.reference_libraries import reference

    timm = reference("timm")
    takes_size = {} if case["timm"].startswith("resnet") else {"img_size": image_size}
    model = timm.create_model(case["timm"], drop_path_rate=case["drop_path_rate"], **takes_size)
    model.to(memory_format=getattr(torch, contender["memory_format"] + "_format", torch.channels_last))
    fused = {"fused": True} if contender["fused"] else {}
    optimizer = reference("timm.optim").create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05, **fused)
    return model, optimizer


def build_ours(
    case: dict[str, Any], spec: dict[str, Any]
) -> tuple[nn.Module, torch.optim.Optimizer, torch.memory_format]:
    from vitlight.models import build_model
    from vitlight.models.coatnet import TIMM_OPTIONS
    from vitlight.training.memory_format import choose_memory_format
    from vitlight.training.optim import Optimizer

    options = TIMM_OPTIONS if case["like_timm"] else {}
    model = build_model(case["arch"], image_size=spec["image_size"], drop_path_rate=case["drop_path_rate"], **options)
    precision = "bf16-mixed" if spec["dtype"] == "bf16" else "32-true"
    memory_format = choose_memory_format("auto", model, spec["device"], precision)
    return model.to(memory_format=memory_format), Optimizer(weight_decay=0.05).build(model), memory_format


def build_step(spec: dict[str, Any]) -> tuple[nn.Module, Callable[[], Tensor]]:
    """The network, and a function that trains it for one step on the same images and labels, returning the loss."""
    case, contender, device = spec["case"], spec["contender"], spec["device"]
    torch.manual_seed(0)
    with torch.device(device):
        if contender["library"] == "timm":
            model, optimizer = build_timm(case, contender, spec["image_size"])
            memory_format = (
                torch.channels_last if contender["memory_format"] == "channels_last" else torch.contiguous_format
            )
        else:
            model, optimizer, memory_format = build_ours(case, spec)
    model.train()
    forward = torch.compile(model) if contender["compiled"] else model
    images = torch.randn(case["batch_size"], 3, spec["image_size"], spec["image_size"], device=device)
    if memory_format != torch.preserve_format:
        images = images.contiguous(memory_format=memory_format)
    labels = torch.randint(0, 1000, (case["batch_size"],), device=device)

    def step() -> Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=spec["dtype"] == "bf16"):
            loss = F.cross_entropy(forward(images).float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return model, step


def peak_mib(device: str) -> float:
    """Of the device's allocator on a GPU; of the whole process, in RAM, on a CPU."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024


def main() -> None:
    spec = json.loads(sys.argv[1])
    if spec["contender"]["allocator"]:
        from vitlight.training.allocator import keep_freed_memory

        if not keep_freed_memory():
            raise SystemExit("malloc could not be set")
    model, step = build_step(spec)
    wait = torch.cuda.synchronize if spec["device"] == "cuda" else lambda: None
    for _ in range(WARMUP_STEPS[spec["contender"]["compiled"]]):
        step()
    constant = {"num_params": sum(parameter.numel() for parameter in model.parameters())}
    if spec["contender"]["library"] == "vitlight":
        from vitlight.cost import forward_macs

        constant["forward_macs"] = forward_macs(model, spec["image_size"])
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        number = int(line)
        wait()
        start = time.perf_counter()
        for _ in range(number):
            loss = step()
        wait()
        seconds = (time.perf_counter() - start) / number
        if not torch.isfinite(loss):
            raise SystemExit(f"the loss is {loss}")
        print(json.dumps({"seconds": seconds, "peak_mib": peak_mib(spec["device"]), **constant}), flush=True)


if __name__ == "__main__":
    main()
