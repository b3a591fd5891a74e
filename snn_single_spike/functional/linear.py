"""Linear layers from spike times: with neurons, and as a readout."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import backends
from ..backends._compiling import is_traced
from ..backends._decay import clip_decay
from ..backends._types import state_dtype
from ..ops.linear import LinearReadout, LinearSettings, LinearSpikes
from ..ops.surrogate import SpikeGrad, split
from ..ops.validation import REDUCTIONS, RESETS, check_choice, check_linear, check_parameter
from ..spikes import SpikeEvents, Spikes, SpikeTimes
from ..spikes.current import dense_linear, shared_by_steps
from ..spikes.delayed import DelayedSpikes
from ._layer import (
    Current,
    LayerNeurons,
    check_type,
    checked_neurons,
    layer_inputs,
    spikes_of_current,
    spikes_of_layer,
)
from .neuron import DEFAULT_GRADIENT, leaky_reset
from .readout import leaky_readout

__all__ = ["linear_readout", "run_single_spike_linear", "single_spike_linear"]


def single_spike_linear(
    spikes: SpikeTimes | SpikeEvents,
    weight: Tensor,
    bias: Tensor | None,
    beta: Tensor | float,
    threshold: Tensor | float = 1.0,
    *,
    spike_grad: SpikeGrad | None = None,
    gradient: str = DEFAULT_GRADIENT,
    backend: str = "auto",
    reset_mechanism: str = "none",
    graded_spikes_factor: Tensor | float = 1.0,
) -> SpikeTimes:
    """
    A linear layer and its single-spike neurons, from spike times to spike times.

    The result equals :func:`single_spike_leaky` of
    `torch.nn.functional.linear(spikes.to_dense(), weight, bias)`, with the same gradients by every
    rule. No current `(T, B, out)` is computed: every spike adds its column of weights once.

    The forward pass saves nothing of size T. Under a surrogate rule the time of the backward pass
    grows with T. Under a surrogate rule a layer whose input spikes come from another hidden layer
    keeps its adjoint `(T, B, out)` during the backward pass. Under `gradient="spike_time"` it
    allocates no such tensor, and its time hardly grows with T. Formulas as in
    :func:`single_spike_leaky`.

    Example::

        spikes = SpikeTimes(times, num_steps=100)                  # (B, 784)
        hidden = single_spike_linear(spikes, weight, bias, beta=0.9)
        hidden.times                                           # (B, out)

    :param spikes: spikes of the layer before, with one feature dimension
    :type spikes: SpikeTimes or SpikeEvents

    :param weight: weights of shape `(out, in)`; float32 or float64, half types are computed in
        float32
    :type weight: torch.Tensor

    :param bias: constant current of shape `(out,)`, or None
    :type bias: torch.Tensor, optional

    Other arguments as in :func:`single_spike_leaky`. With a custom surrogate the layer is
    computed on dense tensors.

    :return: spikes of shape `(T, B, out)`, with `times` of shape `(B, out)`, and with
        `interpolated_times` under `gradient="spike_time"`
    :rtype: SpikeTimes

    :raises TypeError: `spikes` is a dense tensor
    :raises ValueError: `spikes` has more than one feature dimension, or does not fit `weight`
    :raises ValueError, TypeError, RuntimeError: as :func:`single_spike_leaky`
    """
    check_choice("reset_mechanism", reset_mechanism, RESETS)
    neurons = LayerNeurons(
        beta,
        threshold,
        graded_spikes_factor,
        *split(spike_grad),
        gradient,
        leaky_reset(reset_mechanism),
        backend,
    )
    return run_single_spike_linear(_check_spikes(spikes), weight, bias, neurons)


def linear_readout(
    spikes: Spikes,
    weight: Tensor,
    bias: Tensor | None,
    beta: Tensor | float,
    *,
    reduction: str = "sum",
    backend: str = "auto",
) -> Tensor:
    """
    A linear layer and a leaky membrane that never fires, from spike times to class scores.

    The result equals :func:`leaky_readout` of
    `torch.nn.functional.linear(spikes.to_dense(), weight, bias)`. No current `(T, B, out)` is
    computed. The readout of Taylor, King and Harper, arXiv:2205.15286.

    Example::

        hidden = single_spike_linear(spikes, weight_1, bias_1, beta=0.9)
        scores = linear_readout(hidden, weight_2, bias_2, beta=0.95)       # (B, out)

    :param spikes: spikes of the layer before, with one feature dimension
    :type spikes: SpikeTimes or SpikeEvents

    :param weight: weights of shape `(out, in)`
    :type weight: torch.Tensor

    :param bias: constant current of shape `(out,)`, or None
    :type bias: torch.Tensor, optional

    Other arguments as in :func:`leaky_readout`.

    :return: tensor of shape `(B, out)`, type of the weights
    :rtype: torch.Tensor

    :raises TypeError: `spikes` is a dense tensor
    :raises ValueError: `spikes` has more than one feature dimension, or does not fit `weight`
    :raises ValueError, TypeError, RuntimeError: as :func:`leaky_readout`
    """
    check_choice("reduction", reduction, REDUCTIONS)
    check_linear(_check_spikes(spikes), weight, bias)
    chosen = backends.select(backend, weight.device.type)
    spikes, weight = _of_whole_steps(spikes, weight, backend)
    if not spikes.prefer_events():
        dense = dense_linear(spikes.read_dense(), weight, bias)
        return leaky_readout(dense, beta, reduction=reduction, backend=backend)
    decay = clip_decay(check_parameter("beta", beta, _current(spikes, weight)))
    settings, tensors, events = _linear_inputs(spikes, weight, bias)
    value = LinearReadout.apply(
        settings._replace(reduction=reduction, backend=chosen),
        *tensors,
        decay.expand(len(weight)).contiguous(),
        *events,
    )
    return value.to(weight.dtype)


def run_single_spike_linear(
    spikes: Spikes, weight: Tensor, bias: Tensor | None, neurons: LayerNeurons
) -> SpikeTimes:
    """Check the arguments and run the operator on spike times."""
    check_linear(spikes, weight, bias)
    spikes, weight = _of_whole_steps(spikes, weight, neurons.backend)
    if neurons.needs_membrane or not spikes.prefer_events():
        by = "linear with a custom spike_grad"
        dense = spikes.materialize(by) if neurons.needs_membrane else spikes.read_dense()
        return spikes_of_current(dense_linear(dense, weight, bias), neurons)
    current = _current(spikes, weight)
    decay, threshold, height = checked_neurons(neurons, current)
    settings, tensors, events = _linear_inputs(spikes, weight, bias, neurons)
    of_output = (x.expand(len(weight)).contiguous() for x in (decay, threshold))
    out = LinearSpikes.apply(settings, *tensors, *of_output, *events)
    return spikes_of_layer(out, current, height, neurons)


def _of_whole_steps(spikes: Spikes, weight: Tensor, backend: str) -> tuple[Spikes, Tensor]:
    """Spikes of whole steps and their weights, unless the backend reads shared spikes itself."""
    if isinstance(spikes, DelayedSpikes) and not is_traced() and spikes.prefer_events():
        chosen = backends.select(backend, weight.device.type)
        if hasattr(backends.load(chosen, "linear"), "SPLITS"):
            return spikes, weight
    return shared_by_steps(spikes, weight)


def _linear_inputs(
    spikes: Spikes, weight: Tensor, bias: Tensor | None, neurons: LayerNeurons | None = None
) -> tuple[LinearSettings, tuple[Tensor | None, ...], tuple[Tensor | None, ...]]:
    """The settings, (carrier, share of the later step, weight, bias), and the events."""
    fraction: Tensor | None = None
    if isinstance(spikes, DelayedSpikes):
        spikes, fraction = spikes.split()
        fraction = fraction.to(state_dtype(weight.dtype))
    settings, tensors, events = layer_inputs(spikes, weight, spikes.height, bias, neurons)
    given, *weights = tensors
    return settings, (given, fraction, *weights), events


def _current(spikes: Spikes, weight: Tensor) -> Current:
    """The description of the current (T, B, out)."""
    shape = torch.Size((spikes.num_steps, spikes.batch, len(weight)))
    return Current(shape, weight.dtype, weight.device)


def _check_spikes(spikes: Any) -> Spikes:
    check_type(spikes)
    if len(spikes.features) != 1:
        raise ValueError(
            f"spikes has shape {tuple(spikes.shape)}, but one feature dimension is expected, "
            "(time, batch, in): use spikes.flatten(2)"
        )
    return spikes
