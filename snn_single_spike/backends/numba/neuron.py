"""Launches the compiled CPU loops: threads take ranges of neurons.

Compiled by numba on their first use and cached on disk after it. No fast-math, so that spikes are
decided as eager torch decides them.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from snn_single_spike.kernels.numba.compiling import RESETS, RULES
from snn_single_spike.kernels.numba.neuron_backward import neuron_backward_loop
from snn_single_spike.kernels.numba.neuron_backward_vectors import neuron_backward_vectors
from snn_single_spike.kernels.numba.neuron_forward import neuron_forward_loop
from snn_single_spike.kernels.numba.neuron_forward_vectors import neuron_forward_vectors
from snn_single_spike.kernels.numba.simd import LANES
from snn_single_spike.kernels.numba.surrogate import SURROGATES

from .._surrogate import Surrogate
from .._types import (
    SCANNED,
    ForwardOutputs,
    InputGradients,
    Neuron,
    OutputGradients,
    Saved,
    state_dtype,
)
from ._launch import WidenedOutputs, as_array, run_pieces

_OF_LEAKY = ("beta", "threshold", "graded_spikes_factor", "mem_0")
_GRADIENTS_OF_LEAKY = ("current", "beta", "threshold", "mem_0")


def _in_vectors(neuron: Neuron, neurons: int) -> int:
    """How many lanes are whole vectors of a Leaky, whose loops are compiled apart."""
    others = neuron.alpha is not None or neuron.feedback is not None or neuron.reset == "zero_after"
    return 0 if others else neurons // LANES * LANES


def _tensors(neuron: Neuron, dtype: torch.dtype) -> dict[str, np.ndarray]:
    """Parameters and initial states by name; an empty array for None."""
    return {name: as_array(x, 1, dtype) for name, x in neuron.tensors().items()}


def neuron_forward(current: Tensor, neuron: Neuron, out: ForwardOutputs) -> None:
    num_steps, neurons = current.shape
    dtype = state_dtype(current.dtype)
    results = WidenedOutputs(dtype)
    given = as_array(current, 2, dtype)
    tensors = _tensors(neuron, dtype)
    how = neuron.clamp, RESETS[neuron.reset]
    spikes, mem = results.array(out.spikes, 2), results.array(out.mem, 2)
    last = results.array(out.crossing, 2), results.array(out.final, 2), out.times.numpy()
    whole = _in_vectors(neuron, neurons)
    leaky = *(tensors[name] for name in _OF_LEAKY), *how, spikes, mem
    crossing, final, times = last
    run_pieces(neuron_forward_vectors, num_steps, 0, whole, given, *leaky, times, crossing, final)
    synaptic = results.array(out.syn, 2), results.array(out.inh, 2)
    every = *tensors.values(), *how, spikes, mem, *synaptic
    run_pieces(
        neuron_forward_loop, num_steps, whole, neurons, given, *every, times, crossing, final
    )
    results.copy_back()


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
    state = state_dtype(dtype)
    scalar = np.float64 if state == torch.float64 else np.float32
    results = WidenedOutputs(state)
    read = (
        num_steps,
        as_array(None if saved.recompute else saved.saved, 2, state),
        as_array(saved.saved if saved.recompute else None, 2, state),
    )
    tensors = _tensors(neuron, state)
    options = neuron.clamp, RESETS[neuron.reset], times.numpy()
    to_leaky = as_array(grads.grad_spikes, 2, state), as_array(grads.grad_mem, 2, state)
    around = as_array(grads.grad_at, 1, state), as_array(grads.grad_before, 1, state)
    into = {name: results.array(out.get(name), 2 if name == "current" else 1) for name in SCANNED}
    slope = SURROGATES[surrogate.name], scalar(surrogate.a), scalar(surrogate.b)
    whole = _in_vectors(neuron, neurons)
    leaky = *read, *(tensors[name] for name in _OF_LEAKY), *options, *to_leaky, *around
    leaky = *leaky, *(into[name] for name in _GRADIENTS_OF_LEAKY)
    run_pieces(neuron_backward_vectors, num_steps, 0, whole, *leaky, RULES[rule], *slope)
    states = as_array(saved.syn, 2, state), as_array(saved.inh, 2, state)
    synaptic = as_array(grads.grad_syn, 2, state), as_array(grads.grad_inh, 2, state)
    every = *read, *states, *tensors.values(), *options, *to_leaky, *synaptic, *around
    run_pieces(
        neuron_backward_loop,
        num_steps,
        whole,
        neurons,
        *every,
        *into.values(),
        RULES[rule],
        *slope,
    )
    results.copy_back()
