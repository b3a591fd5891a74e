"""What linear layers and convolutions from spike times share: inputs, heights and outputs."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import backends
from ..backends._compiling import is_traced
from ..backends._decay import clip_decay
from ..backends._types import state_dtype
from ..ops.carrier import carrier_of
from ..ops.linear import LinearSettings
from ..ops.surrogate import SpikeGrad, Surrogate
from ..ops.validation import GRADIENT_RULES, check_choice, check_parameter, check_parameters
from ..spikes import SpikeEvents, Spikes, SpikeTimes
from ..spikes.times import first_steps
from .neuron import Result, run_single_spike

__all__ = [
    "Current",
    "LayerNeurons",
    "check_type",
    "checked_neurons",
    "events_of_result",
    "layer_inputs",
    "spikes_of_current",
    "spikes_of_layer",
    "spikes_of_result",
]


class Current(NamedTuple):
    """Shape and type of the current of a layer. The current itself is never computed."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device


class LayerNeurons(NamedTuple):
    """The neurons of a layer from spike times, with the arguments of :func:`run_single_spike`."""

    beta: Tensor | float
    threshold: Tensor | float
    graded_spikes_factor: Tensor | float
    surrogate: Surrogate | None
    custom_surrogate: SpikeGrad | None
    gradient: str
    reset: str
    backend: str

    @property
    def is_exact(self) -> bool:
        """Whether the gradient is that of the spike time."""
        return self.gradient == "spike_time"

    @property
    def needs_membrane(self) -> bool:
        """Whether autograd differentiates a custom surrogate, on the dense membrane."""
        custom = self.custom_surrogate is not None and not self.is_exact
        return custom and torch.is_grad_enabled()


def checked_neurons(
    neurons: LayerNeurons, current: Current
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The decay and the threshold, (1,) or one for each feature, and the height of the spikes.

    The height is None if it is 1 and is not learned.
    """
    check_choice("gradient", neurons.gradient, GRADIENT_RULES)
    beta, threshold, height = check_parameters(
        current,
        beta=neurons.beta,
        threshold=neurons.threshold,
        graded_spikes_factor=neurons.graded_spikes_factor,
    )
    return clip_decay(beta), threshold, _height(neurons.graded_spikes_factor, height, current)


def layer_inputs(
    spikes: Spikes,
    weight: Tensor,
    height: Tensor | None,
    bias: Tensor | None,
    neurons: LayerNeurons | None = None,
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
        once=events.once,
        padded=events.padded,
        track=torch.is_grad_enabled() and not torch.compiler.is_exporting(),
    )
    if neurons is not None:
        settings = settings._replace(
            rule=neurons.gradient,
            reset=neurons.reset,
            surrogate=neurons.surrogate or neurons.custom_surrogate,
            backend=backends.select(neurons.backend, weight.device.type),
        )
    tensors = (spikes.carrier, scaled.contiguous(), drive.contiguous())
    return settings, tensors, tuple(events[:4])


def spikes_of_layer(
    out: tuple[Tensor, Tensor, Tensor],
    current: Current,
    height: Tensor | None,
    neurons: LayerNeurons,
) -> SpikeTimes:
    """The carrier, the times and the interpolated times of an operator as spikes.

    Interpolated times keep their gradient under surrogate_disable of snnTorch.
    """
    new, times, interpolated = out
    num_steps, *size = current.shape
    disabled = neurons.surrogate is None and neurons.custom_surrogate is None
    return SpikeTimes.of_neuron(
        times.view(size),
        num_steps,
        height,
        current.dtype,
        new.detach() if disabled else new,
        interpolated.view(size) if neurons.is_exact else None,
    )


def spikes_of_current(current: Tensor, neurons: LayerNeurons) -> SpikeTimes:
    """The spike times of the neurons on a dense current."""
    of_height_1 = neurons._replace(graded_spikes_factor=1.0)._asdict()
    result = run_single_spike(current, **of_height_1, want_mem=False)
    return spikes_of_result(result, neurons.graded_spikes_factor)


def spikes_of_result(result: Result, graded_spikes_factor: Tensor | float) -> SpikeTimes:
    """Spike times of neurons that were run on a dense current, with spikes of height 1."""
    spikes = result.spikes
    assert spikes is not None
    times = result.times
    interpolated = times if times.is_floating_point() else None
    return SpikeTimes.of_neuron(
        times if interpolated is None else first_steps(spikes.detach() != 0),
        spikes.shape[0],
        _checked_height(graded_spikes_factor, spikes),
        spikes.dtype,
        carrier_of(spikes),
        interpolated,
    )


def events_of_result(result: Result, graded_spikes_factor: Tensor | float) -> SpikeEvents:
    """As :func:`spikes_of_result`, of neurons that may spike again."""
    assert result.spikes is not None
    height = _checked_height(graded_spikes_factor, result.spikes)
    return SpikeEvents.of_neuron(result.spikes, height)


def _checked_height(factor: Tensor | float, spikes: Tensor) -> Tensor | None:
    return _height(factor, check_parameter("graded_spikes_factor", factor, spikes), spikes)


def _height(factor: Tensor | float, height: Tensor, like: Tensor | Current) -> Tensor | None:
    """A checked factor as the height of spikes; None if it is 1 and is not learned."""
    if isinstance(factor, float) and factor == 1.0:
        return None
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
