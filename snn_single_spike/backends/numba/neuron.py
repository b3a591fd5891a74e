"""Launches the compiled CPU loops of a layer of neurons: threads take ranges of neurons.

Numba compiles the loops on their first use and caches them on disk. No fast-math, so that spikes
are decided as eager torch decides them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from snn_single_spike.kernels.numba import arguments
from snn_single_spike.kernels.numba.compiling import RESETS
from snn_single_spike.kernels.numba.neuron_backward import neuron_backward_loop
from snn_single_spike.kernels.numba.neuron_forward import neuron_forward_loop

from .._surrogate import Surrogate
from .._types import (
    PARAMETERS,
    SCANNED,
    STATES,
    ForwardOutputs,
    InputGradients,
    Neuron,
    OutputGradients,
    Saved,
    state_dtype,
)
from ._launch import Arrays, as_array, loop_dtype, run_vectors, spike_gradient


def _neuron(neuron: Neuron, arrays: Arrays, dtype: torch.dtype) -> arguments.Neuron:
    given = {name: getattr(neuron, name) for name in PARAMETERS}
    return arguments.Neuron(
        **{name: None if x is None else as_array(x, 1, dtype) for name, x in given.items()},
        **{name: arrays.read(getattr(neuron, name), 1, dtype) for name in STATES},
        last_0=arrays.read(neuron.last_0, 1, torch.int64),
        clamp=neuron.clamp,
        reset=RESETS[neuron.reset],
        refractory=neuron.refractory,
    )


def neuron_forward(current: Tensor, neuron: Neuron, out: ForwardOutputs) -> None:
    num_steps, neurons = current.shape
    state, rows = state_dtype(current.dtype), loop_dtype(current.dtype)
    arrays = Arrays(neurons)
    outputs = arguments.ForwardOutputs(
        spikes=arrays.write(out.spikes, 2, rows),
        mem=arrays.write(out.mem, 2, rows),
        syn=arrays.write(out.syn, 2, rows),
        inh=arrays.write(out.inh, 2, rows),
        crossing=arrays.write(out.crossing, 2, state),
        final=arrays.write(out.final, 2, rows),
        times=arrays.write(out.times, 1, torch.int64),
        phase=arrays.write(out.phase, 2, torch.uint8),
    )
    given = arrays.read(current, 2, rows), _neuron(neuron, arrays, state), outputs
    run_vectors(neuron_forward_loop, num_steps, neurons, *given)
    arrays.copy_back()


def neuron_backward(
    num_steps: int,
    dtype: torch.dtype,
    saved: Saved,
    neuron: Neuron,
    times: Tensor,
    grads: OutputGradients,
    rule: str,
    surrogate: Surrogate,
    out: InputGradients,
) -> None:
    neurons = times.numel()
    state, rows = state_dtype(dtype), loop_dtype(dtype)
    arrays = Arrays(neurons)
    read = arguments.Saved(
        num_steps=num_steps,
        mem=arrays.read(None if saved.recompute else saved.saved, 2, rows),
        current=arrays.read(saved.saved if saved.recompute else None, 2, rows),
        syn=arrays.read(saved.syn, 2, rows),
        inh=arrays.read(saved.inh, 2, rows),
        phase=arrays.read(saved.phase, 2, torch.uint8),
    )
    gradients = arguments.OutputGradients(
        grad_spikes=arrays.read(grads.grad_spikes, 2, rows),
        grad_mem=arrays.read(grads.grad_mem, 2, rows),
        grad_syn=arrays.read(grads.grad_syn, 2, rows),
        grad_inh=arrays.read(grads.grad_inh, 2, rows),
        grad_at=arrays.read(grads.grad_at, 1, state),
        grad_before=arrays.read(grads.grad_before, 1, state),
    )
    into = arguments.InputGradients(
        current=arrays.write(out.get("current"), 2, rows),
        **{name: arrays.write(out.get(name), 1, state) for name in SCANNED[1:]},
    )
    given = read, _neuron(neuron, arrays, state), arrays.read(times, 1, torch.int64)
    through = spike_gradient(rule, surrogate, state)
    run_vectors(neuron_backward_loop, num_steps, neurons, *given, gradients, into, through)
    arrays.copy_back()
