"""Linear layers from spike times: with neurons, and as a readout."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..ops.layer import LayerNeurons
from ..ops.surrogate import SpikeGrad, split
from ..ops.validation import RESETS, check_choice
from ..spikes import SpikeEvents, Spikes, SpikeTimes, layers
from .neuron import DEFAULT_GRADIENT, leaky_reset

__all__ = ["check_type", "linear_readout", "single_spike_linear"]


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
    _check_spikes(spikes)
    neurons = LayerNeurons(
        beta,
        threshold,
        graded_spikes_factor,
        *split(spike_grad),
        gradient,
        leaky_reset(reset_mechanism),
        backend,
    )
    return layers.linear_spikes(spikes, weight, bias, neurons)


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
    _check_spikes(spikes)
    return layers.linear_readout(spikes, weight, bias, beta, reduction, backend)


def check_type(spikes: Any) -> None:
    if not isinstance(spikes, Spikes):
        raise TypeError(
            f"spikes must be SpikeTimes or SpikeEvents, not {type(spikes).__name__}: make them "
            "with SpikeTimes.from_dense(spikes) or SpikeEvents.from_dense(spikes)"
        )


def _check_spikes(spikes: Any) -> None:
    check_type(spikes)
    if len(spikes.features) != 1:
        raise ValueError(
            f"spikes has shape {tuple(spikes.shape)}, but one feature dimension is expected, "
            "(time, batch, in): use spikes.flatten(2)"
        )
