import mmap

import numpy as np
import pytest
import torch

from vitlight.training.device import DeviceWait, memory_gib, peak_flops


@pytest.mark.parametrize(
    ("name", "precision", "is_tf32", "expected"),
    [
        ("NVIDIA A100-SXM4-80GB", "bf16-mixed", False, 312e12),
        ("NVIDIA A100 80GB PCIe", "16-mixed", False, 312e12),
        ("NVIDIA A100-SXM4-40GB", "32-true", True, 156e12),
        ("NVIDIA A100-SXM4-40GB", "32-true", False, 19.5e12),
        ("NVIDIA H100 80GB HBM3", "bf16-true", False, 989.4e12),
        ("NVIDIA H100 PCIe", "bf16-mixed", False, 756e12),
        ("NVIDIA H200", "bf16-mixed", False, 989.4e12),
        ("NVIDIA L4", "bf16-mixed", False, 121e12),
        ("NVIDIA L40S", "bf16-mixed", False, 362e12),
        ("Tesla V100-SXM2-16GB", "16-mixed", False, 125e12),
        ("Tesla V100-SXM2-16GB", "bf16-mixed", False, None),  # it has none
        ("Tesla T4", "32-true", True, 8.1e12),  # no TF32
        ("NVIDIA A10G", "bf16-mixed", False, None),  # slower than the A10
        ("NVIDIA H200 NVL", "bf16-mixed", False, None),
        ("NVIDIA H100 NVL", "bf16-mixed", False, None),
        ("NVIDIA A100-SXM4-80GB", "64-true", False, None),
        ("AMD EPYC", "32-true", False, None),
    ],
)
def test_peaks_are_those_of_the_data_sheets_and_never_a_guess(name, precision, is_tf32, expected):
    assert peak_flops(name, precision, is_tf32) == expected


def test_memory_of_a_cpu_is_what_the_process_holds():
    before = memory_gib(torch.device("cpu"))
    with mmap.mmap(-1, 1 << 29) as held:  # new pages; what malloc gives may be pages that the process holds already
        np.frombuffer(held, np.uint8)[:] = 1
        assert memory_gib(torch.device("cpu")) - before == pytest.approx(0.5, abs=0.1)


class Event:
    """A device that works through what it is given: time is what the test says when an event is recorded."""

    now = 0.0

    def record(self):
        self.at = Event.now

    def elapsed_time(self, other):
        return 1e3 * (other.at - self.at)


def test_a_wait_of_the_host_counts_only_while_the_device_is_idle():
    """Three steps: before the second the host waits 4 s, the device idles 1 s of them; before the third 2 s, all idle."""
    wait = DeviceWait(Event)
    assert wait.read() == 1.0  # nothing measured
    for begin, end, waited in ((0.0, 10.0, 9.0), (11.0, 20.0, 4.0), (25.0, 30.0, 2.0)):
        Event.now = begin
        wait.begin(waited)
        Event.now = end
        wait.end()
    assert wait.read() == (1.0 + 2.0) / (4.0 + 2.0)
    assert wait.read() == 1.0  # anew


def test_no_more_than_a_fixed_number_of_events_is_made():
    made = []
    wait = DeviceWait(lambda: made.append(1) or Event())
    for _ in range(2):
        for _ in range(1000):
            wait.begin(1.0)
            wait.end()
        wait.read()
    assert len(made) == 2 * 256
