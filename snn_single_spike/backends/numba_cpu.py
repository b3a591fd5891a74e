"""Launches the compiled CPU loops: threads take ranges of neurons.

Compiled by numba on their first use and cached on disk after it. No fast-math, so that spikes are
decided as eager torch decides them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from snn_single_spike.kernels.cpu.block import BLOCK
from snn_single_spike.kernels.cpu.compiling import REDUCTIONS, RESETS, RULES
from snn_single_spike.kernels.cpu.leaky_backward import leaky_backward_loop
from snn_single_spike.kernels.cpu.leaky_backward_vectors import leaky_backward_vectors
from snn_single_spike.kernels.cpu.leaky_forward import leaky_forward_loop
from snn_single_spike.kernels.cpu.leaky_forward_vectors import leaky_forward_vectors
from snn_single_spike.kernels.cpu.leaky_readout import leaky_readout_loop
from snn_single_spike.kernels.cpu.simd import LANES
from snn_single_spike.kernels.cpu.surrogate import SURROGATES

from ..surrogate import Surrogate
from .buffers import (
    ForwardOutputs,
    InputGradients,
    Neuron,
    OutputGradients,
    ReadoutOutputs,
    Saved,
    state_dtype,
)
from .memory import empty
from .numba_common import as_array, in_threads

_PIECE = 1 << 20  # elements (T * M) that a thread takes at once
_OF_LEAKY = 4  # parameters that Leaky has, and gradients, which come first


def _run(kernel: Callable[..., None], steps: int, low: int, high: int, *arguments: object) -> None:
    """Run ``kernel`` over the lanes from ``low`` to ``high``, in pieces."""
    piece = max(BLOCK, _PIECE // steps // BLOCK * BLOCK)
    if torch.get_num_threads() == 1:
        piece = max(high - low, 1)
    pieces = [(start, min(start + piece, high)) for start in range(low, high, piece)]
    in_threads(kernel, [(*lanes, *arguments) for lanes in pieces])


def _in_vectors(neuron: Neuron, lanes: int) -> int:
    """How many lanes are whole vectors of a Leaky, whose loops are compiled apart."""
    others = neuron.alpha is not None or neuron.feedback is not None or neuron.reset == "clear"
    return 0 if others else lanes // LANES * LANES


class _Narrowed:
    """Output arrays in state precision for outputs of a half type, copied back at the end."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._pairs: list[tuple[Tensor, Tensor]] = []

    def array(self, tensor: Tensor | None, dimensions: int) -> np.ndarray:
        if tensor is None or tensor.dtype == self.dtype:
            return as_array(tensor, dimensions, self.dtype)
        wide = empty(tuple(tensor.shape), dtype=self.dtype, device=tensor.device)
        self._pairs.append((tensor, wide))
        return wide.numpy()

    def copy_back(self) -> None:
        for tensor, wide in self._pairs:
            tensor.copy_(wide)


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


def leaky_forward(current: Tensor, neuron: Neuron, out: ForwardOutputs) -> None:
    steps, lanes = current.shape
    dtype = state_dtype(current.dtype)
    results = _Narrowed(dtype)
    given = as_array(current, 2, dtype)
    *parameters, clamp, reset = _neuron(neuron, dtype)
    spikes, mem = results.array(out.spikes, 2), results.array(out.mem, 2)
    last = out.times.numpy(), results.array(out.crossing, 2), results.array(out.final, 2)
    whole = _in_vectors(neuron, lanes)
    leaky = *parameters[:_OF_LEAKY], clamp, reset, spikes, mem
    _run(leaky_forward_vectors, steps, 0, whole, given, *leaky, *last)
    synaptic = results.array(out.syn, 2), results.array(out.inh, 2)
    every = *parameters, clamp, reset, spikes, mem, *synaptic
    _run(leaky_forward_loop, steps, whole, lanes, given, *every, *last)
    results.copy_back()


def leaky_backward(
    steps: int,
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
    results = _Narrowed(state)
    read = (
        steps,
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
    _run(leaky_backward_vectors, steps, 0, whole, *leaky, RULES[rule], *slope)
    states = as_array(saved.syn, 2, state), as_array(saved.inh, 2, state)
    synaptic = as_array(grads.syn, 2, state), as_array(grads.inh, 2, state)
    every = *read, *states, *parameters, *options, *to_leaky, *synaptic, *around, *into
    _run(leaky_backward_loop, steps, whole, lanes, *every, RULES[rule], *slope)
    results.copy_back()


def leaky_readout(
    current: Tensor, beta: Tensor, mem: Tensor | None, reduction: str, out: ReadoutOutputs
) -> None:
    steps, lanes = current.shape
    dtype = state_dtype(current.dtype)
    results = _Narrowed(dtype)
    _run(
        leaky_readout_loop,
        steps,
        0,
        lanes,
        as_array(current, 2, dtype),
        as_array(beta, 1, dtype),
        as_array(mem, 1, dtype),
        results.array(out.value, 1),
        results.array(out.sensitivity, 1),
        as_array(out.step, 1, torch.int64),
        REDUCTIONS[reduction],
    )
    results.copy_back()
