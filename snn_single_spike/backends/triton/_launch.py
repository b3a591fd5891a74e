"""What every launch has in common: block sizes, steps loaded ahead, the device."""

from __future__ import annotations

import contextlib
import functools

import torch
import triton
import triton.language as tl

from snn_single_spike.kernels.triton.surrogate import surrogate_slope

# Spike decisions must round like eager torch: no fused multiply-add.
LAUNCH = {"num_warps": 1, "enable_fp_fusion": False}
# Time steps loaded ahead: as many as registers allow. Backward reads up to three streams.
FORWARD_STEPS, BACKWARD_STEPS, RECOMPUTE_STEPS = 16, 8, 4
# 16-byte loads of float32 for a warp of 32, and the bytes of a row that keep a chip busy.
_WIDE_BLOCK, _WIDE_PROGRAMS = 128, 256
# The interpreter takes its time per program and step, whatever the block size.
_INTERPRETED_BLOCK = 4096


def block_size(lanes: int, warp: int) -> int:
    """Neurons per program of one warp: several a thread, or one where programs are few."""
    return _WIDE_BLOCK if lanes >= _WIDE_PROGRAMS * _WIDE_BLOCK else warp


def forward_steps(synaptic: bool, warp: int) -> int:
    """Time steps to load ahead: with up to four outputs, AMD's scalar registers hold few rows."""
    if not synaptic:
        return FORWARD_STEPS
    return FORWARD_STEPS // 2 if warp == 32 else FORWARD_STEPS // 4


@functools.cache
def warp_size() -> int | None:
    """Threads of a warp of this GPU; None in the interpreter."""
    if isinstance(surrogate_slope, triton.runtime.JITFunction):
        return triton.runtime.driver.active.get_current_target().warp_size
    return None


def neurons_per_program(lanes: int) -> int:
    warp = warp_size()
    if warp is None:
        return min(_INTERPRETED_BLOCK, triton.next_power_of_2(lanes))
    return block_size(lanes, warp)


def state_type(dtype: torch.dtype) -> tl.dtype:
    return tl.float64 if dtype == torch.float64 else tl.float32


def on_device_of(tensor: torch.Tensor) -> contextlib.AbstractContextManager:
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()
