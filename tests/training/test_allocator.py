import platform
import subprocess
import sys

import pytest

from vitlight.training.allocator import keep_freed_memory

# Prints how many page faults a training step takes once the first ones are over.
FAULTS = """
import resource, sys, torch
from vitlight.models import build_model
from vitlight.training.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
model = build_model("resnet_nano1", 10, 64).train()
images = torch.randn(512, 3, 64, 64)
for step in range(6):
    if step == 3:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    model(images).sum().backward()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 3)
"""


def faults_a_step(mode: str) -> int:
    done = subprocess.run([sys.executable, "-c", FAULTS, mode], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_steps_take_the_pages_of_the_step_before() -> None:
    default = faults_a_step("default")
    assert default > 10_000  # some hundred MB of activations in pages of 4 KiB
    assert faults_a_step("keep") < default / 10


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert keep_freed_memory() is False
