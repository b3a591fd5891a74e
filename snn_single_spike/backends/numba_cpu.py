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
from snn_single_spike.kernels.cpu.leaky_forward import leaky_forward_loop
from snn_single_spike.kernels.cpu.leaky_readout import leaky_readout_loop
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


def _run(kernel: Callable[..., None], steps: int, lanes: int, *arguments: object) -> None:
    """Run ``kernel`` over all lanes, in pieces."""
    piece = max(BLOCK, _PIECE // steps // BLOCK * BLOCK)
    if torch.get_num_threads() == 1:
        piece = lanes
    pieces = [(low, min(low + piece, lanes)) for low in range(0, lanes, piece)]
    in_threads(kernel, [(*lanes_, *arguments) for lanes_ in pieces])


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
    _run(
        leaky_forward_loop,
        steps,
        lanes,
        as_array(current, 2, dtype),
        *_neuron(neuron, dtype),
        results.array(out.spikes, 2),
        results.array(out.mem, 2),
        results.array(out.syn, 2),
        results.array(out.inh, 2),
        out.times.numpy(),
        results.array(out.crossing, 2),
        results.array(out.final, 2),
    )
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
    _run(
        leaky_backward_loop,
        steps,
        lanes,
        steps,
        as_array(None if saved.recompute else saved.tensor, 2, state),
        as_array(saved.tensor if saved.recompute else None, 2, state),
        as_array(saved.syn, 2, state),
        as_array(saved.inh, 2, state),
        *_neuron(neuron, state),
        times.numpy(),
        *(as_array(g, 2, state) for g in (grads.spikes, grads.mem, grads.syn, grads.inh)),
        as_array(grads.at, 1, state),
        as_array(grads.before, 1, state),
        results.array(out.current, 2),
        *(results.array(tensor, 1) for tensor in out[1:]),
        RULES[rule],
        SURROGATES[surrogate.name],
        scalar(surrogate.a),
        scalar(surrogate.b),
    )
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
