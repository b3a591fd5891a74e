"""Layers of weights and their neurons or readout, from spike times: checks, then the operator.

Each function takes what a layer reads of spikes, a :class:`LayerInput` or dense spikes
(T, B, *features), and the arguments of the public function. It checks them, and runs one operator.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import backends
from ..backends import _convolution as convolution
from ..backends._compiling import is_traced
from ..backends._decay import clip_decay
from ..backends._events import Events
from ..backends._types import Convolution, state_dtype
from .carrier import carrier_of
from .conv import ConvSpikes
from .linear import LinearReadout, LinearSettings, LinearSpikes
from .neuron import Result, run_single_spike
from .readout import run_readout
from .surrogate import SpikeGrad, Surrogate
from .validation import (
    GRADIENT_RULES,
    REDUCTIONS,
    check_choice,
    check_linear,
    check_parameter,
)


class LayerInput(NamedTuple):
    """What a layer reads of the spikes before it."""

    events: Events
    num_steps: int
    batch: int
    features: torch.Size
    carrier: Tensor | None
    height: Tensor | None = None
    """A factor of the weights of each input, or of each channel. None if every height is 1."""
    copies: int = 1
    """The events are those of this many copies of the inputs, which have the same weights."""
    fraction: Tensor | None = None
    """The share of the later step, (N,), from which the two rows of the values were made."""

    @property
    def device(self) -> torch.device:
        return self.events.times.device


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


class LayerSpikes(NamedTuple):
    """The spikes of a layer, with the arguments of :meth:`SpikeTimes.of_neuron`."""

    times: Tensor
    """(B, *features)."""
    num_steps: int
    height: Tensor | None
    dtype: torch.dtype
    carrier: Tensor
    interpolated_times: Tensor | None


class Current(NamedTuple):
    """Shape and type of the current of a layer. The current itself is never computed."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device


def run_single_spike_linear(
    given: LayerInput | Tensor, weight: Tensor, bias: Tensor | None, neurons: LayerNeurons
) -> LayerSpikes:
    """A linear layer and its neurons."""
    _check_linear(given, weight, bias)
    if isinstance(given, Tensor):
        return _of_current(dense_linear(given, weight, bias), neurons)
    beta, threshold, height = _checked(neurons, _current(given, weight, weight.shape[:1]))
    tensors = _inputs(given, weight, given.height, bias)
    settings = _of_neurons(given, weight, neurons)
    of_output = (x.expand(len(weight)).contiguous() for x in (clip_decay(beta), threshold))
    out = LinearSpikes.apply(settings, *tensors, *of_output, *given.events[:4])
    return _spikes(out, weight.shape[:1], weight.dtype, height, neurons)


def run_linear_readout(
    given: LayerInput | Tensor,
    weight: Tensor,
    bias: Tensor | None,
    beta: Tensor | float,
    *,
    reduction: str,
    backend: str,
) -> Tensor:
    """A linear layer and its readout."""
    check_choice("reduction", reduction, REDUCTIONS)
    _check_linear(given, weight, bias)
    if isinstance(given, Tensor):
        dense = dense_linear(given, weight, bias)
        return run_readout(dense, beta, reduction=reduction, backend=backend)
    checked = check_parameter("beta", beta, _current(given, weight, weight.shape[:1]))
    tensors = _inputs(given, weight, given.height, bias)
    settings = _settings(given, weight, backend, reduction=reduction)
    decay = clip_decay(checked).expand(len(weight)).contiguous()
    return LinearReadout.apply(settings, *tensors, decay, *given.events[:4]).to(weight.dtype)


def run_single_spike_conv(
    given: LayerInput | Tensor,
    weight: Tensor,
    bias: Tensor | None,
    sizes: Convolution,
    features: torch.Size,
    neurons: LayerNeurons,
) -> LayerSpikes:
    """A convolution, whose weights and sizes are checked, and its neurons.

    ``features`` are those of the neurons, (O, height, width) or (O, width). ``weight`` has two
    dimensions of the kernel in both cases.
    """
    if isinstance(given, LayerInput):
        beta, threshold, height = _checked(neurons, _current(given, weight, features))
        factor = None if given.height is None else _of_channels(given.height, weight, sizes)
        carrier, _, *weights = _inputs(given, weight, factor, bias)
        settings = _of_neurons(given, weight, neurons)
        threshold = _by_channel(threshold, neurons.threshold, features)
        decay = clip_decay(_by_channel(beta, neurons.beta, features))
        tensors = (carrier, *weights, decay, threshold)
        out = ConvSpikes.apply(settings, sizes, *tensors, *given.events[:4])
        return _spikes(out, features, weight.dtype, height, neurons)
    return _of_current(dense_conv(given, weight, bias, sizes).unflatten(2, features), neurons)


def dense_linear(spikes: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A linear layer on dense spikes, in the type of the weights, without autocast."""
    with torch.autocast(spikes.device.type, enabled=False):
        return F.linear(spikes.to(weight.dtype), weight, bias)


def dense_conv(spikes: Tensor, weight: Tensor, bias: Tensor | None, sizes: Convolution) -> Tensor:
    """The current (T, B, O * positions) of dense spikes (T, B, *features), without autocast."""
    with torch.autocast(spikes.device.type, enabled=False):
        flat = spikes.flatten(2).to(weight.dtype)
        return convolution.current(flat, weight, bias, sizes)


def spikes_of_result(result: Result, graded_spikes_factor: Tensor | float) -> LayerSpikes:
    """The spikes of neurons that were run on a dense current, with spikes of height 1."""
    spikes = result.spikes
    assert spikes is not None
    times = result.times
    interpolated = times if times.is_floating_point() else None
    return LayerSpikes(
        times if interpolated is None else first_steps(spikes.detach() != 0),
        spikes.shape[0],
        checked_height(graded_spikes_factor, spikes),
        spikes.dtype,
        carrier_of(spikes),
        interpolated,
    )


def first_steps(fired: Tensor) -> Tensor:
    """The step of the first True of each neuron, -1 for a neuron without True."""
    return fired.byte().argmax(0).masked_fill_(~fired.any(0), -1)


def checked_height(factor: Tensor | float, like: Tensor | Current) -> Tensor | None:
    """A factor as the height of spikes (T, B, *features); None if it is 1 and is not learned."""
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


def _check_linear(given: LayerInput | Tensor, weight: Tensor, bias: Tensor | None) -> None:
    features = given.shape[2:] if isinstance(given, Tensor) else given.features
    check_linear(features[0], given.device, weight, bias)


def _current(given: LayerInput, weight: Tensor, features: torch.Size) -> Current:
    shape = torch.Size((given.num_steps, given.batch, *features))
    return Current(shape, weight.dtype, weight.device)


def _checked(neurons: LayerNeurons, current: Current) -> tuple[Tensor, Tensor, Tensor | None]:
    """The decay and the threshold, (1,) or one for each feature, and the height of the spikes."""
    check_choice("gradient", neurons.gradient, GRADIENT_RULES)
    return (
        check_parameter("beta", neurons.beta, current),
        check_parameter("threshold", neurons.threshold, current),
        checked_height(neurons.graded_spikes_factor, current),
    )


def _of_channels(height: Tensor, weight: Tensor, sizes: Convolution) -> Tensor:
    """The height of each channel as a factor of the weights, (O, C / groups, 1, 1)."""
    # A channel of the input is a column of the weights of its group.
    by_group = height.expand(sizes.channels).view(sizes.groups, 1, -1)
    of_output = by_group.expand(-1, len(weight) // sizes.groups, -1)
    return of_output.reshape(*weight.shape[:2], 1, 1)


def _by_channel(checked: Tensor, given: Tensor | float, features: torch.Size) -> Tensor:
    """A checked parameter as (O, 1) if it is the same in a channel, else (O, positions)."""
    channels, *maps = features
    if checked.numel() == 1:
        return checked.expand(channels)[:, None].contiguous()
    by_channel = checked.view(channels, -1)
    assert isinstance(given, Tensor)
    within = given.shape[-len(maps) :] if given.dim() > len(maps) else given.shape
    return by_channel[:, :1].contiguous() if within.numel() == 1 else by_channel


def _inputs(
    given: LayerInput, weight: Tensor, factor: Tensor | None, bias: Tensor | None
) -> tuple[Tensor | None, ...]:
    """The carrier, the share of the later step, the weight times ``factor``, and the bias."""
    state = state_dtype(weight.dtype)
    scaled = weight if given.copies == 1 else torch.cat((weight,) * given.copies, 1)
    scaled = scaled.to(state)
    if factor is not None:
        scaled = scaled * factor.to(state)
    drive = scaled.new_zeros(len(weight)) if bias is None else bias.to(state)
    fraction = None if given.fraction is None else given.fraction.to(state)
    return given.carrier, fraction, scaled.contiguous(), drive.contiguous()


def _settings(given: LayerInput, weight: Tensor, backend: str, **options: Any) -> LinearSettings:
    return LinearSettings(
        num_steps=given.num_steps,
        once=given.events.once,
        padded=given.events.padded,
        track=torch.is_grad_enabled() and not torch.compiler.is_exporting(),
        backend=backends.select(backend, weight.device.type),
        **options,
    )


def _of_neurons(given: LayerInput, weight: Tensor, neurons: LayerNeurons) -> LinearSettings:
    surrogate = neurons.surrogate or neurons.custom_surrogate
    options = {"rule": neurons.gradient, "reset": neurons.reset, "surrogate": surrogate}
    return _settings(given, weight, neurons.backend, **options)


def _spikes(
    out: tuple[Tensor, Tensor, Tensor],
    features: torch.Size,
    dtype: torch.dtype,
    height: Tensor | None,
    neurons: LayerNeurons,
) -> LayerSpikes:
    """The carrier, the times and the interpolated times of an operator as spikes.

    Interpolated times keep their gradient under surrogate_disable of snnTorch.
    """
    new, times, interpolated = out
    size = (times.shape[0], *features)
    disabled = neurons.surrogate is None and neurons.custom_surrogate is None
    return LayerSpikes(
        times.view(size),
        new.shape[0],
        height,
        dtype,
        new.detach() if disabled else new,
        interpolated.view(size) if neurons.is_exact else None,
    )


def _of_current(current: Tensor, neurons: LayerNeurons) -> LayerSpikes:
    """The spikes of the neurons on a dense current."""
    of_height_1 = neurons._replace(graded_spikes_factor=1.0)._asdict()
    result = run_single_spike(current, **of_height_1, want_mem=False)
    return spikes_of_result(result, neurons.graded_spikes_factor)
