"""What a device could do and what it holds: peak FLOP/s, memory, and how long it really waited for data."""

import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

__all__ = ["DeviceWait", "memory_gib", "peak_flops"]

# Dense peak in TFLOP/s, without structured sparsity, from NVIDIA's data sheet or white paper of each. Tensor cores with
# float32 sums, but for float32. The key begins the device's name as CUDA gives it, and ends where a word ends; the longest
# that fits counts.
_PEAK_TFLOPS = {
    #                      bf16   fp16   tf32   fp32
    "Tesla V100-SXM2": (None, 125.0, None, 15.7),  # V100 data sheet
    "Tesla V100-PCIE": (None, 112.0, None, 14.0),  # V100 data sheet
    "Tesla T4": (None, 65.0, None, 8.1),  # T4 data sheet
    "NVIDIA A10": (125.0, 125.0, 62.5, 31.2),  # A10 data sheet
    "NVIDIA A30": (165.0, 165.0, 82.0, 10.3),  # A30 data sheet
    "NVIDIA A100": (312.0, 312.0, 156.0, 19.5),  # A100 data sheet: the same for PCIe and SXM, 40 and 80 GB
    "NVIDIA A100-SXM4": (312.0, 312.0, 156.0, 19.5),  # A100 data sheet
    "NVIDIA A100-PCIE": (312.0, 312.0, 156.0, 19.5),  # A100 data sheet
    "NVIDIA L4": (121.0, 121.0, 60.0, 30.3),  # L4 data sheet: half of what it has with sparsity, 242 and 120
    "NVIDIA L40S": (362.0, 362.0, 183.0, 91.6),  # L40S data sheet: 362.05
    "NVIDIA H100 80GB HBM3": (989.4, 989.4, 494.7, 66.9),  # H100 white paper, SXM5
    "NVIDIA H100 PCIe": (756.0, 756.0, 378.0, 51.2),  # H100 white paper, PCIe
    "NVIDIA H200": (989.4, 989.4, 494.7, 66.9),  # H200 data sheet: the H100 SXM5's, rounded
}
_VARIANTS = ("NVIDIA H200 NVL", "NVIDIA A100X", "NVIDIA A30X")  # lower clocks than the name they begin with
_COLUMNS = {"bf16": 0, "16": 1}

_MAX_STEPS = 256  # whose events are kept between two rows
_GIB = 1 << 30


def peak_flops(device_name: str, precision: str, is_tf32: bool) -> float | None:
    """Dense peak FLOP/s of a device by its name (torch.cuda.get_device_name), None where no sheet is known here.

    precision: the Trainer's (`bf16-mixed`, `32-true`, ...). is_tf32: whether float32 products may be computed in TF32.
    """
    if device_name.startswith(_VARIANTS):
        return None
    fits = [name for name in _PEAK_TFLOPS if device_name == name or device_name.startswith((f"{name} ", f"{name}-"))]
    if not fits or precision.startswith("64"):
        return None
    peaks = _PEAK_TFLOPS[max(fits, key=len)]
    kind = precision.partition("-")[0]
    if kind in _COLUMNS:
        peak = peaks[_COLUMNS[kind]]
    elif kind == "32":
        peak = peaks[2] if is_tf32 and peaks[2] is not None else peaks[3]
    else:
        peak = None
    return None if peak is None else peak * 1e12


def memory_gib(device: torch.device) -> float:
    """CUDA: the most that tensors held since the last call. Else: what this process holds now, shared pages included."""
    if device.type == "cuda":
        most = torch.cuda.max_memory_allocated(device) / _GIB
        torch.cuda.reset_peak_memory_stats(device)
        return most
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / _GIB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / _GIB


class DeviceWait:
    """What of the host's waiting for data a CUDA device waited too, from events at the begin and end of steps.

    Events are recorded without waiting, and read only by `read`, after a synchronisation that a row needs anyway. Of the
    steps between two rows the first 256 are measured.
    """

    def __init__(self, make_event: Callable[[], Any] | None = None) -> None:
        self._make_event = make_event or (lambda: torch.cuda.Event(enable_timing=True))
        self._begins: list[Any] = []
        self._ends: list[Any] = []
        self._waited: list[float] = []  # host's seconds before each begin
        self._num_begun = self._num_ended = 0

    def begin(self, waited_seconds: float) -> None:
        """A step begins on the device; the host had waited so long for its data."""
        if self._num_begun == _MAX_STEPS:
            return
        if len(self._begins) == self._num_begun:
            self._begins.append(self._make_event())
            self._ends.append(self._make_event())
            self._waited.append(0.0)
        self._begins[self._num_begun].record()
        self._waited[self._num_begun] = waited_seconds
        self._num_begun += 1

    def end(self) -> None:
        """It is handed over."""
        if self._num_ended < self._num_begun:
            self._ends[self._num_ended].record()
            self._num_ended += 1

    def read(self) -> float:
        """The part of the host's waiting, in [0, 1], in which the device had nothing to do; starts anew. 1 where nothing was
        measured."""
        host = device = 0.0
        for step in range(1, self._num_ended):
            idle = self._ends[step - 1].elapsed_time(self._begins[step]) / 1e3
            host += self._waited[step]
            device += min(self._waited[step], max(0.0, idle))
        self._num_begun = self._num_ended = 0
        return device / host if host else 1.0
