"""Launches the Triton kernels for a layer of neurons."""

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
    PARAMETERS,
    SCANNED,
    ForwardOutputs,
    InputGradients,
    Neuron,
    OutputGradients,
    Saved,
)
from ._launch import (
    BACKWARD_WIDE,
    FORWARD_WIDE,
    LAUNCH,
    backward_steps,
    forward_steps,
    is_wide,
    neurons_per_program,
    on_device_of,
    state_type,
    warp_size,
)


def _sizes(neuron: Neuron) -> dict[str, int]:
    """P_BETA and so on: 1, or one value for each neuron of a sample."""
    parameters = {name: getattr(neuron, name) for name in PARAMETERS}
    return {f"P_{name.upper()}": 1 if x is None else x.numel() for name, x in parameters.items()}


def neuron_forward(current: torch.Tensor, neuron: Neuron, out: ForwardOutputs) -> None:
    num_steps, neurons = current.shape
    rows = (current, out.spikes, out.mem, out.syn, out.inh, out.phase)
    wide = is_wide(current.dtype, neurons, FORWARD_WIDE, *rows)
    more_outputs = neuron.alpha is not None or out.phase is not None
    block = neurons_per_program(neurons, wide)
    with on_device_of(current):
        neuron_forward_kernel[(triton.cdiv(neurons, block),)](
            current=current,
            **neuron.tensors(),
            **out._asdict(),
            refractory=neuron.refractory,
            T=num_steps,
            M=neurons,
            **_sizes(neuron),
            CLAMP=neuron.clamp,
            RESET=neuron.reset,
            STATE=state_type(current.dtype),
            BLOCK=block,
            U=forward_steps(wide, more_outputs, warp_size() or 32),
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
    neurons = times.numel()
    saved_rows = (saved.saved, saved.syn, saved.inh, saved.phase)
    wide = is_wide(dtype, neurons, BACKWARD_WIDE, *saved_rows, *grads, out.get("current"))
    block = neurons_per_program(neurons, wide)
    a, b, a_rest, b_rest = _single(surrogate.a, surrogate.b)
    with on_device_of(times):
        neuron_backward_kernel[(triton.cdiv(neurons, block),)](
            mem=None if saved.recompute else saved.saved,
            current=saved.saved if saved.recompute else None,
            syn=saved.syn,
            inh=saved.inh,
            phase=saved.phase,
            **neuron.tensors(),
            times=times,
            **grads._asdict(),
            **{f"grad_{name}": out.get(name) for name in SCANNED},
            refractory=neuron.refractory,
            T=num_steps,
            M=neurons,
            **_sizes(neuron),
            STEP_SPIKES=_stride(grads.grad_spikes),
            STEP_MEM=_stride(grads.grad_mem),
            STEP_SYN=_stride(grads.grad_syn),
            STEP_INH=_stride(grads.grad_inh),
            a=a,
            b=b,
            a_rest=a_rest,
            b_rest=b_rest,
            CLAMP=neuron.clamp,
            RULE=rule,
            SURROGATE=surrogate.name,
            RESET=neuron.reset,
            STATE=state_type(dtype),
            BLOCK=block,
            U=backward_steps(wide, neuron.gain is not None, dtype, warp_size() or 32),
            **LAUNCH,
        )


def _single(*numbers: float) -> tuple[float, ...]:
    """Numbers rounded to float32, the type of a kernel's arguments; then their rounding errors."""
    rounded = [float(np.float32(x)) for x in numbers]
    return *rounded, *(x - y for x, y in zip(numbers, rounded, strict=True))


def _stride(rows: torch.Tensor | None) -> int:
    """Elements from one time step to the next; 0 where one row serves every step."""
    return 0 if rows is None or rows.shape[0] == 1 else rows.shape[1]
