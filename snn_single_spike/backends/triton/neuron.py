"""Launches the Triton kernels: grids, block sizes and which outputs are wanted."""

from __future__ import annotations

import numpy as np
import torch
import triton

from snn_single_spike.kernels.triton.neuron import (
    neuron_backward_kernel,
    neuron_forward_kernel,
)

from .._surrogate import Surrogate
from .._types import (
    ForwardOutputs,
    InputGradients,
    Neuron,
    OutputGradients,
    Saved,
)
from ._launch import (
    BACKWARD_STEPS,
    LAUNCH,
    RECOMPUTE_STEPS,
    forward_steps,
    neurons_per_program,
    on_device_of,
    state_type,
    warp_size,
)


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


def neuron_forward(current: torch.Tensor, neuron: Neuron, out: ForwardOutputs) -> None:
    num_steps, lanes = current.shape
    block = neurons_per_program(lanes)
    with on_device_of(current):
        neuron_forward_kernel[(triton.cdiv(lanes, block),)](
            current,
            *_parameters(neuron),
            *out,
            num_steps,
            lanes,
            *_sizes(neuron),
            CLAMP=neuron.clamp,
            RESET=neuron.reset,
            STATE=state_type(current.dtype),
            BLOCK=block,
            U=forward_steps(neuron.alpha is not None, warp_size() or 32),
            **LAUNCH,
        )


def neuron_backward(
    num_steps: int,
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
    block = neurons_per_program(lanes)
    with on_device_of(times):
        neuron_backward_kernel[(triton.cdiv(lanes, block),)](
            None if saved.recompute else saved.tensor,
            saved.tensor if saved.recompute else None,
            saved.syn,
            saved.inh,
            *_parameters(neuron),
            times,
            *grads,
            *out,
            num_steps,
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


def _single(*numbers: float) -> tuple[float, ...]:
    """Numbers in float32, as which kernels are given them, and then what that leaves of each."""
    rounded = [float(np.float32(x)) for x in numbers]
    return *rounded, *(x - y for x, y in zip(numbers, rounded, strict=True))


def _stride(rows: torch.Tensor | None) -> int:
    """Elements from one time step to the next, 0 for a gradient that is one row."""
    return 0 if rows is None or rows.shape[0] == 1 else rows.shape[1]
