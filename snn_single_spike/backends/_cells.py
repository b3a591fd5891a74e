"""The order of cells, in which the kernels of convolutions keep their neurons.

A cell is all channels of one position and group, side by side in memory: a spike adds one row of
weights to each cell that it reaches.
"""

from __future__ import annotations

from torch import Tensor

from ._types import ConvNeurons, Convolution, GradientFactors, Neuron


def to_cells(features: Tensor, conv: Convolution) -> Tensor:
    """(..., O * positions) in the order of cells: (groups, positions, O / groups)."""
    by_group = features.unflatten(-1, (conv.groups, -1, conv.positions))
    return by_group.transpose(-1, -2).flatten(-3)


def to_features(cells: Tensor, conv: Convolution) -> Tensor:
    """The inverse of :func:`to_cells`."""
    by_cell = cells.unflatten(-1, (conv.groups, conv.positions, -1))
    return by_cell.transpose(-1, -2).flatten(-3)


def gradient_of_cells(grad_spikes: GradientFactors, conv: Convolution) -> GradientFactors:
    """The gradient to the spikes in the order of cells."""
    if grad_spikes.weight is not None:
        return grad_spikes._replace(weight=to_cells(grad_spikes.weight, conv).contiguous())
    return GradientFactors(
        lambda samples: to_cells(grad_spikes.to_dense(samples), conv).contiguous(), None
    )


def neuron_of_cells(layer: ConvNeurons, conv: Convolution) -> Neuron:
    """The neurons without the convolution, in the order of cells."""
    neuron = layer.neuron(conv.positions)
    return neuron._replace(
        beta=to_cells(neuron.beta, conv).contiguous(),
        threshold=to_cells(neuron.threshold, conv).contiguous(),
    )


def parameter_of_cells(parameter: Tensor, groups: int, lanes: int, beyond: float = 0.0) -> Tensor:
    """(O, Q) to (groups * Q, lanes), ``beyond`` in lanes past the channels of a group."""
    out_channels = len(parameter) // groups
    rows = parameter.view(groups, out_channels, -1).transpose(1, 2).flatten(0, 1)
    padded = rows.new_full((len(rows), lanes), beyond)
    padded[:, :out_channels] = rows
    return padded


def weight_of_cells(weight: Tensor, groups: int, lanes: int) -> Tensor:
    """(O, C / groups, KH, KW) to (C, KH * KW, lanes), zeros past the channels of a group."""
    out_channels, taps = len(weight) // groups, weight.shape[2:].numel()
    by_tap = weight.reshape(groups, out_channels, -1, taps).permute(0, 2, 3, 1)
    packed = weight.new_zeros(groups * weight.shape[1], taps, lanes)
    packed[..., :out_channels] = by_tap.flatten(0, 1)
    return packed


def weight_from_cells(packed: Tensor, like: Tensor, groups: int) -> Tensor:
    """The inverse of :func:`weight_of_cells`, in the shape of ``like``."""
    of_channels = packed[..., : len(like) // groups]
    return of_channels.unflatten(0, (groups, -1)).permute(0, 3, 1, 2).reshape(like.shape)


def sum_to_parameter(total: Tensor, parameter: Tensor, conv: Convolution) -> Tensor:
    """One value for each neuron, in the order of cells, summed to the shape of a parameter."""
    of_channel = to_features(total, conv).view(len(parameter), -1)
    shape = parameter.view(len(parameter), -1).shape
    return of_channel.sum_to_size(shape).view(parameter.shape)
