"""Layers from spikes to spikes: the spikes are opened, an operator runs, its times are wrapped."""

from __future__ import annotations

import torch
from torch import Tensor

from ..backends._types import Convolution
from ..ops.layer import (
    LayerInput,
    LayerNeurons,
    checked_height,
    run_linear_readout,
    run_single_spike_conv,
    run_single_spike_linear,
    spikes_of_result,
)
from ..ops.neuron import Result
from ._base import Spikes
from .delayed import DelayedSpikes
from .events import SpikeEvents
from .times import SpikeTimes

__all__ = [
    "conv_spikes",
    "height_of_channels",
    "linear_readout",
    "linear_spikes",
    "made_dense_by_convolution",
    "spikes_of_neuron",
]


def linear_spikes(
    spikes: Spikes, weight: Tensor, bias: Tensor | None, neurons: LayerNeurons
) -> SpikeTimes:
    """The spikes of a linear layer's neurons."""
    given: LayerInput | Tensor
    if neurons.needs_membrane:
        given = spikes.materialize("linear with a custom spike_grad")
    else:
        given = spikes.layer_input(neurons.backend)
    return SpikeTimes.of_neuron(*run_single_spike_linear(given, weight, bias, neurons))


def linear_readout(
    spikes: Spikes,
    weight: Tensor,
    bias: Tensor | None,
    beta: Tensor | float,
    reduction: str,
    backend: str,
) -> Tensor:
    """The scores of a linear layer's readout."""
    given = spikes.layer_input(backend)
    return run_linear_readout(given, weight, bias, beta, reduction=reduction, backend=backend)


def conv_spikes(
    spikes: Spikes,
    weight: Tensor,
    bias: Tensor | None,
    sizes: Convolution,
    features: torch.Size,
    neurons: LayerNeurons,
) -> SpikeTimes:
    """The spikes of a convolution's neurons, as :func:`run_single_spike_conv`."""
    given: LayerInput | Tensor
    reason = made_dense_by_convolution(spikes)
    if neurons.needs_membrane or reason:
        given = spikes.materialize(reason or "convolution with a custom spike_grad")
    else:
        given = spikes.layer_input(neurons.backend)
        if isinstance(given, LayerInput) and spikes.height is not None:
            given = given._replace(height=height_of_channels(spikes))
    return SpikeTimes.of_neuron(
        *run_single_spike_conv(given, weight, bias, sizes, features, neurons)
    )


def made_dense_by_convolution(spikes: Spikes) -> str | None:
    """Why a convolution cannot compute from these spikes; None if it can."""
    if isinstance(spikes, DelayedSpikes):
        return "a convolution of spikes whose delays are not whole"
    if spikes.height is not None and height_of_channels(spikes) is None:
        return "a convolution of spikes whose height differs in a channel"
    return None


def height_of_channels(spikes: Spikes) -> Tensor | None:
    """The height of the spikes of each channel (C,), or (1,) for all channels.

    None if the height differs within a channel: then it cannot be a factor of the weights.
    """
    height = spikes.height
    if height is None:
        return torch.ones(1, dtype=spikes.dtype, device=spikes.device)
    one_value = all(
        size == 1 or step == 0
        for size, step in zip(height.shape[1:], height.stride()[1:], strict=True)
    )
    return height.flatten(1)[:, 0] if one_value else None


def spikes_of_neuron(
    result: Result, graded_spikes_factor: Tensor | float, once: bool
) -> SpikeTimes | SpikeEvents:
    """The spikes of neurons that were run on a dense current, with spikes of height 1.

    ``once`` says whether a neuron spikes at most once.
    """
    if once:
        return SpikeTimes.of_neuron(*spikes_of_result(result, graded_spikes_factor))
    assert result.spikes is not None
    height = checked_height(graded_spikes_factor, result.spikes)
    return SpikeEvents.of_neuron(result.spikes, height)
