"""What linear layers and convolutions from spike times share: inputs, heights and outputs."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..backends._compiling import is_traced
from ..backends._types import state_dtype
from ..ops.carrier import carrier_of
from ..ops.linear import LinearSettings
from ..ops.validation import check_parameter
from ..spikes import SpikeEvents, Spikes, SpikeTimes
from ..spikes.times import first_steps
from .neuron import Result

__all__ = [
    "Current",
    "check_type",
    "events_of_result",
    "layer_inputs",
    "spikes_of_layer",
    "spikes_of_result",
]


class Current(NamedTuple):
    """Shape and type of the current of a layer. The current itself is never computed."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device


def layer_inputs(
    spikes: Spikes, weight: Tensor, height: Tensor | None, bias: Tensor | None
) -> tuple[LinearSettings, tuple[Tensor | None, ...], tuple[Tensor | None, ...]]:
    """The settings, (carrier, weight, bias), and the events. ``height`` multiplies the weights."""
    state = state_dtype(weight.dtype)
    scaled = weight.to(state)
    if height is not None:
        scaled = scaled * height.to(state)
    drive = scaled.new_zeros(len(weight)) if bias is None else bias.to(state)
    events = spikes.events()
    settings = LinearSettings(
        num_steps=spikes.num_steps,
        at_spikes=spikes.interpolated_times is not None,
        once=events.once,
        padded=events.padded,
        track=torch.is_grad_enabled() and not torch.compiler.is_exporting(),
    )
    tensors = (spikes.carrier, scaled.contiguous(), drive.contiguous())
    return settings, tensors, tuple(events[:4])


def spikes_of_layer(
    out: tuple[Tensor, Tensor, Tensor],
    current: Current,
    graded_spikes_factor: Tensor | float,
    exact: bool,
    disabled: bool,
) -> SpikeTimes:
    """The carrier, the times and the interpolated times of an operator as spikes.

    ``disabled`` is surrogate_disable of snnTorch. Interpolated times keep a gradient.
    """
    new, times, interpolated = out
    num_steps, *size = current.shape
    return SpikeTimes.of_neuron(
        times.view(size),
        num_steps,
        _height(graded_spikes_factor, current),
        current.dtype,
        new.detach() if disabled else new,
        interpolated.view(size) if exact else None,
    )


def spikes_of_result(result: Result, graded_spikes_factor: Tensor | float) -> SpikeTimes:
    """Spike times of neurons that were run on a dense current, with spikes of height 1."""
    spikes = result.spikes
    assert spikes is not None
    times = result.times
    interpolated = times if times.is_floating_point() else None
    return SpikeTimes.of_neuron(
        times if interpolated is None else first_steps(spikes.detach() != 0),
        spikes.shape[0],
        _height(graded_spikes_factor, spikes),
        spikes.dtype,
        carrier_of(spikes),
        interpolated,
    )


def events_of_result(result: Result, graded_spikes_factor: Tensor | float) -> SpikeEvents:
    """As :func:`spikes_of_result`, of neurons that may spike again."""
    assert result.spikes is not None
    return SpikeEvents.of_neuron(result.spikes, _height(graded_spikes_factor, result.spikes))


def _height(factor: Tensor | float, like: Tensor | Current) -> Tensor | None:
    """The height of spikes; None if the height is 1 and is not learned."""
    if isinstance(factor, float) and factor == 1.0:
        return None
    height = check_parameter("graded_spikes_factor", factor, like)
    readable = not is_traced()
    if readable and not height.requires_grad and height.numel() == 1 and bool(height == 1):
        return None
    if not torch.is_grad_enabled():
        height = height.detach()
    if height.numel() > 1:
        assert isinstance(factor, Tensor)
        height = height.view(like.shape[2:])
        for dim in range(-min(factor.dim(), height.dim()), 0):
            if factor.shape[dim] == 1:
                height = height.narrow(dim, 0, 1)  # one value along this dimension
    # A copy: an optimizer changes the parameter in place, and the height of the spikes must stay.
    return height.to(like.dtype, copy=True)


def check_type(spikes: Any) -> None:
    if not isinstance(spikes, Spikes):
        raise TypeError(
            f"spikes must be SpikeTimes or SpikeEvents, not {type(spikes).__name__}: make them "
            "with SpikeTimes.from_dense(spikes) or SpikeEvents.from_dense(spikes)"
        )
