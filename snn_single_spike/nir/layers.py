"""Layers and neurons in the form that snnTorch's exporter accepts.

The exporter drops a layer that it does not support, or prints a line. These functions raise an
error instead.
"""

from __future__ import annotations

from typing import Any, NoReturn

import snntorch as snn
import torch
from snntorch._neurons.neurons import SpikingNeuron
from torch import Tensor, nn

from ..conversion.refusals.layers import BATCH_NORM, DROPOUT, MAX_POOL, overridden_parts
from ..modules._base import SingleSpikeNeuron
from ..modules.linear import SingleSpikeLinear
from ._common import pair

__all__ = [
    "LAYERS",
    "exportable_layer",
    "exportable_linear",
    "exportable_neuron",
    "reject",
    "reject_other_neurons",
]

LAYERS = (nn.Linear, nn.Conv2d, nn.AvgPool2d, nn.Flatten)
_NEURONS = (snn.Leaky, snn.Synaptic, snn.RLeaky)
_IDENTITIES = (nn.Identity, DROPOUT)
_PACKAGES = ("snntorch", "snn_single_spike")


def reject(path: str, module: nn.Module, reason: str, edit: str) -> NoReturn:
    raise ValueError(
        f"layer {path!r} ({type(module).__name__}) cannot be exported to NIR: {reason}. {edit}"
    )


def reject_other_neurons(model: nn.Module) -> None:
    """Raise ValueError if the model has neurons that are not of this package."""
    for path, module in model.named_modules():
        if isinstance(module, SpikingNeuron) and not isinstance(module, SingleSpikeNeuron):
            reject(
                path,
                module,
                "it is not a single-spike neuron of this package",
                "convert() the model, or export it with snntorch.export_nir.export_to_nir",
            )


def exportable_neuron(path: str, neuron: Any, features: torch.Size) -> nn.Module:
    """The snnTorch neuron with one value per neuron, and beta as the forward pass clips it."""
    _check_neuron(path, neuron)
    values = _parameters(path, neuron, features)
    if isinstance(neuron, snn.RLeaky):
        _check_recurrence(path, neuron, features)
        v = _per_neuron(neuron.V.detach(), features)
        return snn.RLeaky(**values, V=v, all_to_all=False, init_hidden=True)
    kind = snn.Synaptic if isinstance(neuron, snn.Synaptic) else snn.Leaky
    return kind(**values, init_hidden=True)


def _check_neuron(path: str, neuron: Any) -> None:
    if isinstance(neuron, snn.Lapicque):
        reject(
            path,
            neuron,
            "snnTorch's exporter does not support it",
            "Use snntorch.Leaky with beta = 1 - time_step / (R * C), and multiply the weights of "
            "the layer before it by time_step / C",
        )
    known = next(c for c in type(neuron).__mro__ if c.__module__.split(".")[0] in _PACKAGES)
    overridden = ", ".join(overridden_parts(neuron, known))
    if overridden:
        name = known.__name__
        reject(path, neuron, f"it overrides {overridden} of {name}", f"Use {name} itself")
    if not isinstance(neuron, _NEURONS):
        reject(path, neuron, "NIR has no primitive for it", "Use snntorch.Leaky or Synaptic")
    if (neuron.graded_spikes_factor != 1).any():
        reject(
            path,
            neuron,
            "its spikes have the height graded_spikes_factor, but spikes in NIR have the height 1",
            "Multiply the weights of the next layer by it, and set it to 1",
        )


def _parameters(path: str, neuron: Any, features: torch.Size) -> dict[str, Tensor]:
    """Decay rates and threshold, one value per neuron.

    In float64, because time constants are rounded to float32 at the end: with a single rounding
    the importer computes a more exact beta.
    """
    values = {}
    for name in ("alpha", "beta", "threshold"):
        if not hasattr(neuron, name):
            continue
        value = getattr(neuron, name).detach().double()
        if name != "threshold":
            value = value.clamp(0, 1)
            if (value == 1).any():
                reject(
                    path,
                    neuron,
                    f"with {name}=1 nothing leaks, and NIR's time constant would be infinite",
                    f"Choose {name} below 1",
                )
        values[name] = _per_neuron(value, features)
    return values


def _check_recurrence(path: str, neuron: Any, features: torch.Size) -> None:
    if neuron.all_to_all:
        reject(path, neuron, "its spikes drive other neurons", "Make it with all_to_all=False")
    if len(features) != 1:
        reject(
            path,
            neuron,
            f"its features are {tuple(features)}, but NIR writes its recurrence as a matrix",
            "Put nn.Flatten() before it",
        )


def _per_neuron(value: Tensor, features: torch.Size) -> Tensor:
    """One value per neuron; a parameter may have leading dimensions of size one."""
    while value.dim() > len(features):
        value = value.squeeze(0)
    return value.expand(features).clone()


def exportable_linear(layer: SingleSpikeLinear) -> nn.Linear:
    """The linear layer inside a SingleSpikeLinear."""
    linear = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
    linear.load_state_dict({k: v for k, v in layer.named_parameters() if k in ("weight", "bias")})
    return linear


def exportable_layer(path: str, layer: Any, given: Any, leading: int) -> nn.Module | None:
    """A layer without state; None for a layer without effect.

    ``given`` is the input of the layer, and ``leading`` its number of dimensions before the
    features: 1 for (batch, ...), 2 for (time, batch, ...).
    """
    if isinstance(layer, _IDENTITIES):
        return None
    if type(layer) not in LAYERS:
        _reject_layer(path, layer)
    _check_features(path, layer, tuple(given.shape[leading:]))
    if isinstance(layer, nn.Flatten):
        return _exportable_flatten(path, layer, given.dim(), leading)
    if isinstance(layer, nn.AvgPool2d):
        return _exportable_pool(path, layer)
    if isinstance(layer, nn.Conv2d):
        _check_conv(path, layer)
    return layer


def _reject_layer(path: str, layer: nn.Module) -> NoReturn:
    edit = "Replace it by one of these, or export the model without it"
    if isinstance(layer, BATCH_NORM):
        edit = "Fold it into the layer before it: fuse_conv_bn_eval of torch.nn.utils.fusion"
    elif isinstance(layer, MAX_POOL):
        edit = "Use nn.AvgPool2d"
    known = ", ".join(f"nn.{kind.__name__}" for kind in LAYERS)
    reject(path, layer, f"snnTorch's exporter only supports {known} and neurons", edit)


def _check_features(path: str, layer: nn.Module, features: tuple[int, ...]) -> None:
    expected = {nn.Linear: 1, nn.Conv2d: 3, nn.AvgPool2d: 3}.get(type(layer), len(features))
    if len(features) != expected:
        axes = "channels, height, width" if expected == 3 else "features"
        edit = f"Give it (batch, {axes}), with nn.Flatten() before a Linear"
        reject(path, layer, f"it is given features of shape {features}", edit)


def _exportable_flatten(path: str, layer: nn.Flatten, dims: int, leading: int) -> nn.Module | None:
    start, end = layer.start_dim % dims, layer.end_dim % dims
    if start < leading:
        reject(path, layer, "it flattens the batch", f"Flatten from dimension {leading}")
    # nirtorch reads a layer that returns its input as a loop.
    return None if start == end else nn.Flatten(start - leading + 1, end - leading + 1)


def _exportable_pool(path: str, pool: nn.AvgPool2d) -> nn.Module:
    if pair(pool.padding) != (0, 0) or pool.ceil_mode or pool.divisor_override:
        reason = "snnTorch writes it without padding, ceil_mode and divisor_override"
        reject(path, pool, reason, "Make it without them")
    return nn.AvgPool2d(pair(pool.kernel_size), pair(pool.stride))


def _check_conv(path: str, conv: nn.Conv2d) -> None:
    height, width = conv.kernel_size
    for unsupported, reason, edit in (
        (conv.padding_mode != "zeros", "NIR pads with zeros", 'Use padding_mode="zeros"'),
        (conv.groups != 1, "nir cannot read groups back from a file", "Use groups=1"),
        (
            height != width and conv.padding != "same",
            "nir computes the shape of its output with the height of the kernel for both sides",
            'Use a square kernel, or padding="same"',
        ),
    ):
        if unsupported:
            reject(path, conv, reason, edit)
