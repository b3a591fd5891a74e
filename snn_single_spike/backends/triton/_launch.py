"""Settings of every launch: block sizes, steps loaded ahead, the device."""

from __future__ import annotations

import contextlib
import functools

import torch
import triton
import triton.language as tl

from snn_single_spike.kernels.triton.surrogate import surrogate_slope

# Spike decisions must round like eager torch: no fused multiply-add.
LAUNCH = {"num_warps": 1, "enable_fp_fusion": False}
# Time steps loaded ahead: as many as registers allow. Backward kernels read several streams.
FORWARD_STEPS, BACKWARD_STEPS, RECOMPUTE_STEPS = 16, 8, 4
# Neurons of a block with 16-byte loads (float32, warp of 32), and blocks that keep a chip busy.
_WIDE_BLOCK, _WIDE_PROGRAMS = 128, 256
# The cost of the interpreter is per program and step: large blocks are cheap.
_INTERPRETED_BLOCK = 4096


def block_size(neurons: int, warp: int) -> int:
    """Neurons per program of one warp: several per thread, or one where programs are few."""
    return _WIDE_BLOCK if neurons >= _WIDE_PROGRAMS * _WIDE_BLOCK else warp


def forward_steps(more_outputs: bool, warp: int) -> int:
    """Time steps to load ahead. With synaptic currents or phases there are more outputs than spikes
    and membrane, and the scalar registers of AMD hold fewer rows."""
    if not more_outputs:
        return FORWARD_STEPS
    return FORWARD_STEPS // 2 if warp == 32 else FORWARD_STEPS // 4


@functools.cache
def warp_size() -> int | None:
    """Threads of a warp of this GPU; None in the interpreter."""
    if isinstance(surrogate_slope, triton.runtime.JITFunction):
        return triton.runtime.driver.active.get_current_target().warp_size
    return None


def neurons_per_program(neurons: int) -> int:
    warp = warp_size()
    if warp is None:
        return min(_INTERPRETED_BLOCK, triton.next_power_of_2(neurons))
    return block_size(neurons, warp)


def state_type(dtype: torch.dtype) -> tl.dtype:
    return tl.float64 if dtype == torch.float64 else tl.float32


def on_device_of(tensor: torch.Tensor) -> contextlib.AbstractContextManager:
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()
