"""Linear layers from spike times: with neurons, and as a readout."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import backends
from ..backends._decay import clip_decay
from ..ops.linear import LinearReadout, LinearSettings, LinearSpikes
from ..ops.surrogate import SpikeGrad, Surrogate, split
from ..ops.validation import (
    GRADIENT_RULES,
    REDUCTIONS,
    RESETS,
    check_choice,
    check_linear,
    check_parameter,
)
from ..spikes import SpikeEvents, Spikes, SpikeTimes
from ..spikes.current import dense_linear
from ._layer import Current, check_type, layer_inputs, spikes_of_layer, spikes_of_result
from .neuron import DEFAULT_GRADIENT, leaky_reset, run_single_spike
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
    return run_single_spike_linear(
        _check_spikes(spikes),
        weight,
        bias,
        beta,
        threshold,
        graded_spikes_factor,
        *split(spike_grad),
        gradient,
        leaky_reset(reset_mechanism),
        backend,
    )


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
    if not spikes.prefer_events():
        current = dense_linear(spikes.read_dense(), weight, bias)
        return leaky_readout(current, beta, reduction=reduction, backend=backend)
    described, settings, tensors, events = _linear_inputs(spikes, weight, bias)
    decay = clip_decay(check_parameter("beta", beta, described)).expand(described.shape[2])
    value = LinearReadout.apply(
        settings._replace(reduction=reduction, backend=chosen),
        *tensors,
        decay.contiguous(),
        *events,
    )
    return value.to(weight.dtype)


def run_single_spike_linear(
    spikes: Spikes,
    weight: Tensor,
    bias: Tensor | None,
    beta: Tensor | float,
    threshold: Tensor | float,
    graded_spikes_factor: Tensor | float,
    surrogate: Surrogate | None,
    custom_surrogate: SpikeGrad | None,
    gradient: str,
    reset: str,
    backend: str,
) -> SpikeTimes:
    """Check the arguments and run the operator on spike times.

    :func:`single_spike_linear` and :func:`run_single_spike` describe the arguments.
    """
    check_linear(spikes, weight, bias)
    check_choice("gradient", gradient, GRADIENT_RULES)
    chosen = backends.select(backend, weight.device.type)
    exact = gradient == "spike_time"
    custom = custom_surrogate is not None and not exact and torch.is_grad_enabled()
    if custom or not spikes.prefer_events():
        # Autograd differentiates a custom surrogate on the dense membrane.
        by = "linear with a custom spike_grad"
        dense = spikes.materialize(by) if custom else spikes.read_dense()
        current = dense_linear(dense, weight, bias)
        neuron = (beta, threshold, 1.0, surrogate, custom_surrogate, gradient, reset)
        result = run_single_spike(current, *neuron, want_mem=False, backend=backend)
        return spikes_of_result(result, graded_spikes_factor)
    described, settings, tensors, events = _linear_inputs(spikes, weight, bias)
    decay = clip_decay(check_parameter("beta", beta, described)).expand(described.shape[2])
    out = LinearSpikes.apply(
        settings._replace(
            rule=gradient,
            reset=reset,
            surrogate=surrogate or custom_surrogate,
            backend=chosen,
        ),
        *tensors,
        decay.contiguous(),
        _per_output("threshold", threshold, described),
        *events,
    )
    disabled = surrogate is None and custom_surrogate is None
    return spikes_of_layer(out, described, graded_spikes_factor, exact, disabled)


def _linear_inputs(
    spikes: Spikes, weight: Tensor, bias: Tensor | None
) -> tuple[Current, LinearSettings, tuple[Tensor | None, ...], tuple[Tensor | None, ...]]:
    """The description of the current, and :func:`layer_inputs`."""
    shape = torch.Size((spikes.num_steps, spikes.batch, len(weight)))
    current = Current(shape, weight.dtype, weight.device)
    return current, *layer_inputs(spikes, weight, spikes.height, bias)


def _per_output(name: str, value: Tensor | float, current: Current) -> Tensor:
    """A parameter as one value for each output (O,)."""
    return check_parameter(name, value, current).expand(current.shape[2]).contiguous()


def _check_spikes(spikes: Any) -> Spikes:
    check_type(spikes)
    if len(spikes.features) != 1:
        raise ValueError(
            f"spikes has shape {tuple(spikes.shape)}, but one feature dimension is expected, "
            "(time, batch, in): use spikes.flatten(2)"
        )
    return spikes
