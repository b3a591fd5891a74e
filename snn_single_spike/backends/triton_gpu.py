"""Launches the Triton kernels: grids, block sizes and which outputs are wanted."""

from __future__ import annotations

import contextlib
import functools

import numpy as np
import torch
import triton
import triton.language as tl

from snn_single_spike.kernels.leaky import (
    leaky_backward_kernel,
    leaky_forward_kernel,
    leaky_readout_kernel,
)

from ..surrogate import Surrogate
from .buffers import (
    ForwardOutputs,
    InputGradients,
    Neuron,
    OutputGradients,
    ReadoutOutputs,
    Saved,
)

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
    if isinstance(leaky_forward_kernel, triton.runtime.JITFunction):
        return triton.runtime.driver.active.get_current_target().warp_size
    return None


def _block(lanes: int) -> int:
    warp = warp_size()
    if warp is None:
        return min(_INTERPRETED_BLOCK, triton.next_power_of_2(lanes))
    return block_size(lanes, warp)


def state_type(dtype: torch.dtype) -> tl.dtype:
    return tl.float64 if dtype == torch.float64 else tl.float32


def on_device_of(tensor: torch.Tensor) -> contextlib.AbstractContextManager:
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def _parameters(neuron: Neuron) -> tuple[torch.Tensor | None, ...]:
    """What both kernels take of a neuron, in their order."""
    return (
        neuron.beta,
        neuron.threshold,
        neuron.graded_spikes_factor,
        neuron.mem,
        neuron.alpha,
        neuron.gain,
        neuron.feedback,
        neuron.syn,
        neuron.inh,
    )


def _sizes(neuron: Neuron) -> tuple[int, ...]:
    parameters = (
        neuron.beta,
        neuron.threshold,
        neuron.graded_spikes_factor,
        neuron.alpha,
        neuron.gain,
        neuron.feedback,
    )
    return tuple(1 if parameter is None else parameter.numel() for parameter in parameters)


def leaky_forward(current: torch.Tensor, neuron: Neuron, out: ForwardOutputs) -> None:
    steps, lanes = current.shape
    block = _block(lanes)
    with on_device_of(current):
        leaky_forward_kernel[(triton.cdiv(lanes, block),)](
            current,
            *_parameters(neuron),
            *out,
            steps,
            lanes,
            *_sizes(neuron),
            CLAMP=neuron.clamp,
            RESET=neuron.reset,
            STATE=state_type(current.dtype),
            BLOCK=block,
            U=forward_steps(neuron.alpha is not None, warp_size() or 32),
            **LAUNCH,
        )


def leaky_backward(
    steps: int,
    dtype: torch.dtype,
    saved: Saved,
    neuron: Neuron,
    times: torch.Tensor,
    grads: OutputGradients,
    rule: str,
    surrogate: Surrogate,
    out: InputGradients,
) -> None:
    lanes = times.numel()
    block = _block(lanes)
    with on_device_of(times):
        leaky_backward_kernel[(triton.cdiv(lanes, block),)](
            None if saved.recompute else saved.tensor,
            saved.tensor if saved.recompute else None,
            saved.syn,
            saved.inh,
            *_parameters(neuron),
            times,
            *grads,
            *out,
            steps,
            lanes,
            *_sizes(neuron),
            *map(_stride, (grads.spikes, grads.mem, grads.syn, grads.inh)),
            *_single(surrogate.a, surrogate.b),
            CLAMP=neuron.clamp,
            RULE=rule,
            SURROGATE=surrogate.name,
            RESET=neuron.reset,
            STATE=state_type(dtype),
            BLOCK=block,
            U=RECOMPUTE_STEPS if saved.recompute else BACKWARD_STEPS,
            **LAUNCH,
        )


def leaky_readout(
    current: torch.Tensor,
    beta: torch.Tensor,
    mem: torch.Tensor | None,
    reduction: str,
    out: ReadoutOutputs,
) -> None:
    steps, lanes = current.shape
    block = _block(lanes)
    with on_device_of(current):
        leaky_readout_kernel[(triton.cdiv(lanes, block),)](
            current,
            beta,
            mem,
            out.value,
            out.sensitivity,
            out.step,
            steps,
            lanes,
            beta.numel(),
            REDUCTION=reduction,
            STATE=state_type(current.dtype),
            BLOCK=block,
            U=FORWARD_STEPS,
            **LAUNCH,
        )


def _single(*numbers: float) -> tuple[float, ...]:
    """Numbers in float32, as which kernels are given them, and then what that leaves of each."""
    rounded = [float(np.float32(x)) for x in numbers]
    return *rounded, *(x - y for x, y in zip(numbers, rounded, strict=True))


def _stride(rows: torch.Tensor | None) -> int:
    """Elements from one time step to the next, 0 for a gradient that is one row."""
    return 0 if rows is None or rows.shape[0] == 1 else rows.shape[1]
