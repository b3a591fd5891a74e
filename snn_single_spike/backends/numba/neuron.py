"""Launches the compiled CPU loops: threads take ranges of neurons.

Compiled by numba on their first use and cached on disk after it. No fast-math, so that spikes are
decided as eager torch decides them.
"""

from __future__ import annotations

from typing import Any

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
    ForwardOutputs,
    InputGradients,
    Neuron,
    OutputGradients,
    Saved,
    state_dtype,
)
from ._launch import WidenedOutputs, as_array, run_pieces

_OF_LEAKY = 4  # parameters that Leaky has, and gradients, which come first


def _in_vectors(neuron: Neuron, lanes: int) -> int:
    """How many lanes are whole vectors of a Leaky, whose loops are compiled apart."""
    others = neuron.alpha is not None or neuron.feedback is not None or neuron.reset == "clear"
    return 0 if others else lanes // LANES * LANES


def _neuron(neuron: Neuron, dtype: torch.dtype) -> tuple[Any, ...]:
    """What both loops take of a neuron, in their order."""
    return (
        as_array(neuron.beta, 1, dtype),
        as_array(neuron.threshold, 1, dtype),
        as_array(neuron.graded_spikes_factor, 1, dtype),
        as_array(neuron.mem, 1, dtype),
        as_array(neuron.alpha, 1, dtype),
        as_array(neuron.gain, 1, dtype),
        as_array(neuron.feedback, 1, dtype),
        as_array(neuron.syn, 1, dtype),
        as_array(neuron.inh, 1, dtype),
        neuron.clamp,
        RESETS[neuron.reset],
    )


def neuron_forward(current: Tensor, neuron: Neuron, out: ForwardOutputs) -> None:
    num_steps, lanes = current.shape
    dtype = state_dtype(current.dtype)
    results = WidenedOutputs(dtype)
    given = as_array(current, 2, dtype)
    *parameters, clamp, reset = _neuron(neuron, dtype)
    spikes, mem = results.array(out.spikes, 2), results.array(out.mem, 2)
    last = out.times.numpy(), results.array(out.crossing, 2), results.array(out.final, 2)
    whole = _in_vectors(neuron, lanes)
    leaky = *parameters[:_OF_LEAKY], clamp, reset, spikes, mem
    run_pieces(neuron_forward_vectors, num_steps, 0, whole, given, *leaky, *last)
    synaptic = results.array(out.syn, 2), results.array(out.inh, 2)
    every = *parameters, clamp, reset, spikes, mem, *synaptic
    run_pieces(neuron_forward_loop, num_steps, whole, lanes, given, *every, *last)
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
    lanes = times.numel()
    state = state_dtype(dtype)
    scalar = np.float64 if state == torch.float64 else np.float32
    results = WidenedOutputs(state)
    read = (
        num_steps,
        as_array(None if saved.recompute else saved.tensor, 2, state),
        as_array(saved.tensor if saved.recompute else None, 2, state),
    )
    *parameters, clamp, reset = _neuron(neuron, state)
    options = clamp, reset, times.numpy()
    to_leaky = as_array(grads.spikes, 2, state), as_array(grads.mem, 2, state)
    around = as_array(grads.at, 1, state), as_array(grads.before, 1, state)
    into = results.array(out.current, 2), *(results.array(x, 1) for x in out[1:])
    slope = SURROGATES[surrogate.name], scalar(surrogate.a), scalar(surrogate.b)
    whole = _in_vectors(neuron, lanes)
    leaky = *read, *parameters[:_OF_LEAKY], *options, *to_leaky, *around, *into[:_OF_LEAKY]
    run_pieces(neuron_backward_vectors, num_steps, 0, whole, *leaky, RULES[rule], *slope)
    states = as_array(saved.syn, 2, state), as_array(saved.inh, 2, state)
    synaptic = as_array(grads.syn, 2, state), as_array(grads.inh, 2, state)
    every = *read, *states, *parameters, *options, *to_leaky, *synaptic, *around, *into
    run_pieces(neuron_backward_loop, num_steps, whole, lanes, *every, RULES[rule], *slope)
    results.copy_back()
