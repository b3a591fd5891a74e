"""Launches the compiled CPU loops: threads take ranges of neurons.

Numba compiles the loops on their first use and caches them on disk. No fast-math, so that spikes
are decided as eager torch decides them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from snn_single_spike.kernels.numba import arguments
from snn_single_spike.kernels.numba.compiling import RESETS
from snn_single_spike.kernels.numba.neuron_backward import neuron_backward_loop
from snn_single_spike.kernels.numba.neuron_backward_vectors import neuron_backward_vectors
from snn_single_spike.kernels.numba.neuron_forward import neuron_forward_loop
from snn_single_spike.kernels.numba.neuron_forward_vectors import neuron_forward_vectors
from snn_single_spike.kernels.numba.simd import LANES

from .._arrays import as_numpy
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
from ._launch import WidenedOutputs, as_array, run_pieces, spike_gradient


def _in_vectors(neuron: Neuron, neurons: int, phase: Tensor | None) -> int:
    """How many neurons fill whole vectors of a Leaky, whose loops are compiled apart."""
    others = neuron.alpha is not None or neuron.feedback is not None or neuron.reset == "zero_after"
    others = others or bool(neuron.refractory) or phase is not None
    return 0 if others else neurons // LANES * LANES


def _neuron(neuron: Neuron, dtype: torch.dtype) -> arguments.Neuron:
    return arguments.Neuron(
        **{
            name: as_array(x, 1, torch.int64 if name == "last_0" else dtype)
            for name, x in neuron.tensors().items()
        },
        clamp=neuron.clamp,
        reset=RESETS[neuron.reset],
        refractory=neuron.refractory,
    )


def neuron_forward(current: Tensor, neuron: Neuron, out: ForwardOutputs) -> None:
    num_steps, neurons = current.shape
    dtype = state_dtype(current.dtype)
    results = WidenedOutputs(dtype)
    outputs = arguments.ForwardOutputs(
        spikes=results.array(out.spikes, 2),
        mem=results.array(out.mem, 2),
        syn=results.array(out.syn, 2),
        inh=results.array(out.inh, 2),
        crossing=results.array(out.crossing, 2),
        final=results.array(out.final, 2),
        times=as_numpy(out.times),
        phase=as_array(out.phase, 2, torch.uint8),
        when=as_array(out.when, 1, torch.int64),
    )
    given = as_array(current, 2, dtype), _neuron(neuron, dtype), outputs
    whole = _in_vectors(neuron, neurons, out.phase)
    run_pieces(neuron_forward_vectors, num_steps, 0, whole, *given)
    run_pieces(neuron_forward_loop, num_steps, whole, neurons, *given)
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
    results = WidenedOutputs(state)
    read = arguments.Saved(
        num_steps=num_steps,
        mem=as_array(None if saved.recompute else saved.saved, 2, state),
        current=as_array(saved.saved if saved.recompute else None, 2, state),
        syn=as_array(saved.syn, 2, state),
        inh=as_array(saved.inh, 2, state),
        phase=as_array(saved.phase, 2, torch.uint8),
    )
    gradients = arguments.OutputGradients(
        grad_spikes=as_array(grads.grad_spikes, 2, state),
        grad_mem=as_array(grads.grad_mem, 2, state),
        grad_syn=as_array(grads.grad_syn, 2, state),
        grad_inh=as_array(grads.grad_inh, 2, state),
        grad_at=as_array(grads.grad_at, 1, state),
        grad_before=as_array(grads.grad_before, 1, state),
        when=as_array(grads.when, 1, torch.int64),
    )
    into = arguments.InputGradients(
        **{name: results.array(out.get(name), 2 if name == "current" else 1) for name in SCANNED}
    )
    through = spike_gradient(rule, surrogate, state)
    given = read, _neuron(neuron, state), as_numpy(times), gradients, into, through
    whole = _in_vectors(neuron, neurons, saved.phase)
    run_pieces(neuron_backward_vectors, num_steps, 0, whole, *given)
    run_pieces(neuron_backward_loop, num_steps, whole, neurons, *given)
    results.copy_back()
