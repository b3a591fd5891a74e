"""Convolutions from spike times, and the pooling of their spikes."""

from __future__ import annotations

import torch
from torch import Tensor

from ..ops.layer import LayerNeurons
from ..ops.surrogate import SpikeGrad, split
from ..ops.validation import RESETS, check_choice, check_conv
from ..spikes import SpikeEvents, SpikeTimes
from ..spikes.current import conv1d_as_2d
from ..spikes.layers import conv_spikes
from ..spikes.pooling import pool_first_spikes
from .linear import check_type
from .neuron import DEFAULT_GRADIENT, leaky_reset

__all__ = [
    "first_spike_pool2d",
    "single_spike_conv1d",
    "single_spike_conv2d",
]


def single_spike_conv2d(
    spikes: SpikeTimes | SpikeEvents,
    weight: Tensor,
    bias: Tensor | None,
    beta: Tensor | float,
    threshold: Tensor | float = 1.0,
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] | str = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    spike_grad: SpikeGrad | None = None,
    gradient: str = DEFAULT_GRADIENT,
    backend: str = "auto",
    reset_mechanism: str = "none",
    graded_spikes_factor: Tensor | float = 1.0,
) -> SpikeTimes:
    """
    A convolution and its single-spike neurons, from spike times to spike times.

    The result equals :func:`single_spike_leaky` of `torch.nn.functional.conv2d` on every step of
    `spikes.to_dense()`, with the same gradients by every rule. Every spike adds its patch of
    weights to the outputs that it reaches once. No current `(T, B, out, height, width)` is stored
    in the forward or in the backward pass.

    Under a surrogate rule the backward pass visits every time step, a few samples at a time. A
    hidden layer receives its gradient from the next convolution in the same way: the next layer
    computes its adjoint a second time for these samples. Under `gradient="spike_time"` only steps
    with spikes are visited, in all layers. Formulas as in :func:`single_spike_leaky`.

    Example::

        spikes = SpikeTimes(times, num_steps=100)                    # (B, 1, 28, 28)
        hidden = single_spike_conv2d(spikes, weight, bias, beta=0.9, padding=2)
        hidden.times                                                 # (B, out, 28, 28)

    :param spikes: spikes of the layer before, with the features `(channels, height, width)`
    :type spikes: SpikeTimes or SpikeEvents

    :param weight: weights of shape `(out, channels / groups, height, width)`; float32 or float64,
        half types are computed in float32
    :type weight: torch.Tensor

    :param bias: constant current of shape `(out,)`, or None
    :type bias: torch.Tensor, optional

    `stride`, `padding` (of zeros, a number, two numbers, `"same"` or `"valid"`), `dilation` and
    `groups` as in :func:`torch.nn.functional.conv2d`. Other arguments as in
    :func:`single_spike_leaky`, with parameters that broadcast to `(out, height, width)`, e.g.
    `(out, 1, 1)`. With a custom surrogate, or if the height of the input spikes differs within a
    channel, the layer is computed on dense tensors, with a :class:`MaterializationWarning`.

    :return: spikes of shape `(T, B, out, height, width)`, with `interpolated_times` under
        `gradient="spike_time"`
    :rtype: SpikeTimes

    :raises TypeError: `spikes` is a dense tensor
    :raises ValueError: `spikes` has other feature dimensions, or does not fit `weight`
    :raises ValueError, TypeError, RuntimeError: as :func:`single_spike_leaky`
    """
    check_choice("reset_mechanism", reset_mechanism, RESETS)
    check_type(spikes)
    sizes = check_conv(spikes, weight, bias, stride, padding, dilation, groups)
    features = torch.Size((len(weight), sizes.out_height, sizes.out_width))
    neurons = LayerNeurons(
        *(beta, threshold, graded_spikes_factor),
        *split(spike_grad),
        *(gradient, leaky_reset(reset_mechanism), backend),
    )
    return conv_spikes(spikes, weight, bias, sizes, features, neurons)


def single_spike_conv1d(
    spikes: SpikeTimes | SpikeEvents,
    weight: Tensor,
    bias: Tensor | None,
    beta: Tensor | float,
    threshold: Tensor | float = 1.0,
    *,
    stride: int = 1,
    padding: int | str = 0,
    dilation: int = 1,
    groups: int = 1,
    spike_grad: SpikeGrad | None = None,
    gradient: str = DEFAULT_GRADIENT,
    backend: str = "auto",
    reset_mechanism: str = "none",
    graded_spikes_factor: Tensor | float = 1.0,
) -> SpikeTimes:
    """
    A convolution in one dimension and its single-spike neurons: :func:`single_spike_conv2d` for
    spikes with the features `(channels, length)` and weights `(out, channels / groups, length)`.

    :return: spikes of shape `(T, B, out, length)`
    :rtype: SpikeTimes

    :raises ValueError, TypeError, RuntimeError: as :func:`single_spike_conv2d`
    """
    check_choice("reset_mechanism", reset_mechanism, RESETS)
    check_type(spikes)
    maps, kernel, sizes = conv1d_as_2d(spikes, weight, bias, stride, padding, dilation, groups)
    features = torch.Size((len(weight), sizes.out_width))
    neurons = LayerNeurons(
        *(beta, threshold, graded_spikes_factor),
        *split(spike_grad),
        *(gradient, leaky_reset(reset_mechanism), backend),
    )
    return conv_spikes(maps, kernel, bias, sizes, features, neurons)


def first_spike_pool2d(
    spikes: SpikeTimes,
    kernel_size: int | tuple[int, int],
    stride: int | tuple[int, int] | None = None,
    padding: int | tuple[int, int] = 0,
    ceil_mode: bool = False,
) -> SpikeTimes:
    """
    The earliest spike of each window, from maps of spike times.

    At most one spike leaves a window. (A unit of `torch.nn.MaxPool2d` spikes at every step at which
    a neuron of its window spikes.) The gradient of a pooled unit flows to the unit with
    the earliest spike, at every step, and of a silent window to its first unit.

    Example::

        pooled = first_spike_pool2d(spikes, 2)         # (T, B, C, 28, 28) -> (T, B, C, 14, 14)

    :param spikes: spike times with the features `(channels, height, width)`
    :type spikes: SpikeTimes

    Other arguments as in :func:`torch.nn.functional.max_pool2d`. Padding is silent.

    :return: the pooled spike times. `interpolated_times` are those of the earliest spikes
    :rtype: SpikeTimes

    :raises TypeError: `spikes` are not :class:`SpikeTimes`
    :raises ValueError: the spikes are not maps, or their height differs within a channel
    """
    if not isinstance(spikes, SpikeTimes):
        raise TypeError(
            f"spikes must be SpikeTimes, not {type(spikes).__name__}: make them with "
            "SpikeTimes.from_dense(spikes)"
        )
    if len(spikes.features) != 3:
        raise ValueError(
            f"the spikes have features {tuple(spikes.features)}, but maps (channels, height, "
            "width) are expected: use spikes.reshape(time, batch, channels, height, width)"
        )
    return pool_first_spikes(spikes, kernel_size, stride, padding, ceil_mode)
