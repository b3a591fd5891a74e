"""A convolution and its neurons from spike times, in plain torch."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from .. import _convolution as convolution
from .._events import Events
from .._surrogate import Surrogate
from .._types import (
    ClosedFormAdjoint,
    ConvGradients,
    ConvNeurons,
    Convolution,
    GradientFactors,
)
from ._layers import Product, backward_closed_form, backward_scan, first_spikes, without_autocast


class _Conv(Product):
    def __init__(self, weight: Tensor, bias: Tensor | None, conv: Convolution) -> None:
        self.weight, self.bias, self.conv = weight, bias, conv
        self.features, self.units = len(weight) * conv.positions, conv.units

    def current(self, spikes: Tensor) -> Tensor:
        return convolution.current(spikes, self.weight, self.bias, self.conv)

    def to_weight(self, lam: Tensor, spikes: Tensor) -> Tensor:
        return convolution.to_weight(lam, spikes, self.weight, self.conv)

    def to_input(self, lam: Tensor, spikes: Tensor) -> Tensor:
        return convolution.to_input(lam, spikes, self.weight, self.conv)


def _sum_to(total: Tensor, like: Tensor) -> Tensor:
    """One value for each neuron, summed over positions if the parameter has one for a channel."""
    return total.view(len(like), -1).sum_to_size(like.shape)


@without_autocast
def conv_first_spikes(
    events: Events,
    num_steps: int,
    layer: ConvNeurons,
    conv: Convolution,
    times: Tensor,
    crossing: Tensor | None,
    sensitivity: Tensor | None,
    when: Tensor | None,
) -> None:
    product = _Conv(layer.weight, layer.bias, conv)
    neuron = layer.neuron(conv.positions)
    first_spikes(events, num_steps, product, neuron, times, crossing, sensitivity, when)


@without_autocast
def conv_backward_closed_form(
    events: Events,
    num_steps: int,
    weight: Tensor,
    beta: Tensor,
    conv: Convolution,
    adjoint: ClosedFormAdjoint,
    grad_weight: Tensor | None,
    grad_bias: Tensor | None,
    grad_inputs: Tensor | None,
) -> None:
    decay = beta.expand(len(beta), conv.positions).flatten()
    product = _Conv(weight, None, conv)
    total = backward_closed_form(
        events, num_steps, product, decay, adjoint, grad_weight, grad_inputs
    )
    if grad_bias is not None:
        grad_bias += total.view(len(grad_bias), -1).sum(1)


def conv_backward_scan(layer: ConvNeurons, conv: Convolution) -> convolution.Scan:
    return without_autocast(functools.partial(_conv_backward_scan, layer, conv))


def _conv_backward_scan(
    layer: ConvNeurons,
    conv: Convolution,
    events: Events,
    num_steps: int,
    times: Tensor,
    grad_spikes: GradientFactors,
    rule: str,
    surrogate: Surrogate,
    out: ConvGradients,
) -> Tensor | None:
    bias, beta, threshold = backward_scan(
        events,
        num_steps,
        _Conv(layer.weight, layer.bias, conv),
        layer.neuron(conv.positions),
        times,
        grad_spikes,
        rule,
        surrogate,
        out.weight,
        out.current,
    )
    if out.bias is not None:
        out.bias.add_(bias.view(len(out.bias), -1).sum(1))
    for gradient, total in ((out.beta, beta), (out.threshold, threshold)):
        if gradient is not None:
            gradient.add_(_sum_to(total, gradient))
    return None  # the maxima are found again


def conv_to_input(weight: Tensor, conv: Convolution) -> convolution.ToInput:
    return functools.partial(_conv_to_input, weight, conv)


def _conv_to_input(
    weight: Tensor,
    conv: Convolution,
    events: Events,
    num_steps: int,
    lam: Tensor,
    winner: Tensor | None,
) -> Tensor:
    """The transposed convolution (T, B, units) of the adjoint (T, B, O * positions)."""
    spikes = events.to_dense(num_steps, conv.units, weight.dtype) if conv.pools else None
    with torch.autocast(lam.device.type, enabled=False):
        return convolution.to_input(lam, spikes, weight, conv)
