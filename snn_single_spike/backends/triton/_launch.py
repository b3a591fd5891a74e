"""Settings of every launch: block sizes, steps loaded ahead, the device."""

from __future__ import annotations

import contextlib
import functools

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget

from snn_single_spike.kernels.triton.surrogate import surrogate_slope

# Spike decisions must round like eager torch: no fused multiply-add.
LAUNCH = {"num_warps": 1, "enable_fp_fusion": False}
# Neurons of a wide program: a thread has four, and loads 16 bytes (float32, warp of 32).
WIDE = 128
# Layers from which wide programs take less time, by the model in docs/performance.md. Narrow ones
# are more warps. A backward program computes more at each step, and gains from them for longer.
FORWARD_WIDE, BACKWARD_WIDE = 1 << 15, 1 << 17
# The cost of the interpreter is per program and step: large blocks are cheap.
_INTERPRETED_BLOCK = 4096


def is_wide(dtype: torch.dtype, neurons: int, wide_from: int, *rows: torch.Tensor | None) -> bool:
    """Whether a program has ``WIDE`` neurons, or one for each thread.

    ``rows`` are the tensors (T, neurons) that the kernel reads or writes at every step. Where one
    of their rows is not aligned to 16 bytes, Triton loads and stores it in two orders of the
    threads, and every step would go through shuffles or shared memory. The state of four float64
    neurons does not fit into the registers of a thread.
    """
    aligned = neurons % 16 == 0 and all(x is None or x.data_ptr() % 16 == 0 for x in rows)
    return aligned and neurons >= wide_from and dtype != torch.float64


def forward_steps(wide: bool, more_outputs: bool, warp: int) -> int:
    """Time steps of a turn: as many as registers allow. The next turn is loaded ahead.

    With synaptic currents or phases there are more outputs than spikes and membrane. The scalar
    registers of AMD, whose warps have 64 threads, hold the addresses of fewer rows.
    """
    if warp == 64:
        return 4 if more_outputs else 8
    return 8 if wide or more_outputs else 16


def backward_steps(wide: bool, inhibitory: bool, dtype: torch.dtype, warp: int) -> int:
    """Time steps of a turn: fewer, because the kernel reads several streams, most for Alpha.

    A number of float64 takes two registers.
    """
    if warp == 64:
        return 2 if inhibitory else 4
    return 4 if wide or inhibitory or dtype == torch.float64 else 8


@functools.cache
def gpu() -> GPUTarget | None:
    """This GPU, as the compiler names it; None in the interpreter."""
    if isinstance(surrogate_slope, triton.runtime.JITFunction):
        return triton.runtime.driver.active.get_current_target()
    return None


def warp_size() -> int | None:
    """Threads of a warp of this GPU; None in the interpreter."""
    target = gpu()
    return None if target is None else target.warp_size


def neurons_per_program(neurons: int, wide: bool) -> int:
    warp = warp_size()
    if warp is None:
        return min(_INTERPRETED_BLOCK, triton.next_power_of_2(neurons))
    return WIDE if wide else warp


def state_type(dtype: torch.dtype) -> tl.dtype:
    return tl.float64 if dtype == torch.float64 else tl.float32


def on_device_of(tensor: torch.Tensor) -> contextlib.AbstractContextManager:
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()
