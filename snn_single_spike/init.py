"""Initial weights and scores of single-spike networks."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .modules._base import SingleSpikeNeuron
from .modules._layer import SingleSpikeLayer
from .modules.linear import SingleSpikeLinear
from .ops.validation import REDUCTIONS, check_choice
from .spikes.lazy import to_dense

__all__ = ["calibrate_", "readout_scale"]

_WEIGHTS = (nn.Linear, nn.Conv1d, nn.Conv2d)


def readout_scale(beta: float, num_steps: int, reduction: str = "sum") -> float:
    """
    The scale of a :class:`snn_single_spike.LeakyReadout` with which a spike of weight 1 changes a
    score by 1, on average over the steps of the spike.

    Sums over time are large: with `beta=0.97` and 100 steps a spike of weight 1 adds 23 to a score
    on average. A cross entropy of such scores is saturated, so that most samples have no gradient.

    .. math::

            \\frac{1}{c} = \\frac{1}{T} \\sum_{k=1}^{T} \\frac{1 - β^k}{1 - β}
            \\text{ for a sum}, \\quad
            \\frac{1}{T} \\sum_{k=0}^{T-1} β^k \\text{ for the last value}, \\quad
            1 \\text{ for a maximum}

    Example::

        scale = init.readout_scale(0.97, num_steps=100)          # 0.043
        readout = LeakyReadout(0.97, learn_beta=True, scale=scale)

    :param beta: decay of the readout
    :type beta: float

    :param num_steps: number of time steps T
    :type num_steps: int

    :param reduction: `"sum"`, `"max"` or `"last"`, as in the readout. Defaults to `"sum"`
    :type reduction: str, optional

    :rtype: float
    :raises ValueError: `reduction` is unknown, beta is outside 0 to 1, or `num_steps` is below 1
    """
    check_choice("reduction", reduction, REDUCTIONS)
    if not 0 <= beta <= 1:
        raise ValueError(f"beta={beta} must be between 0 and 1")
    if num_steps < 1:
        raise ValueError(f"num_steps={num_steps} must be at least 1")
    if reduction == "max":
        return 1.0
    of_spike = beta ** torch.arange(num_steps, dtype=torch.float64)
    if reduction == "sum":
        of_spike = of_spike.cumsum(0)
    return 1 / of_spike.mean().item()


class _Layer(NamedTuple):
    """The weights that drive some neurons; for a layer in one module both are the same."""

    weights: nn.Module
    neuron: nn.Module


class _Found(Exception):
    """Ends a forward pass."""

    def __init__(self, input_: Any) -> None:
        self.input = input_


@torch.no_grad()
def calibrate_(net: nn.Module, batch: Any, share: float = 0.5) -> nn.Module:
    """
    Scale the weights of a network, so that each neuron fires for a share of a batch.

    A neuron fires where the maximum of its membrane is above the threshold, and the membrane
    before the spike is proportional to the weights and the bias. So one factor for each output of
    a layer sets the share: of the samples, and with a convolution of the samples and positions.
    Layers are scaled in the order of their calls, each with the spikes of the scaled layers before.
    Spikes of the last step do not count, because they hardly change a readout.

    No positive factor makes a membrane fire that is never above 0. A neuron with too few other
    membranes in the batch fires in half of these. The readout keeps its weights.

    Example::

        net = nn.Sequential(SingleSpikeLinear(784, 200, beta=0.97), nn.Linear(200, 10))
        init.calibrate_(net, spikes)                 # spikes: SpikeTimes, or a tensor (T, B, 784)

    :param net: modules of this package behind `nn.Linear`, `nn.Conv1d` or `nn.Conv2d`, and
        :class:`snn_single_spike.SingleSpikeLinear` and its convolutions
    :type net: torch.nn.Module

    :param batch: an input of `net`; `net(batch)` is called twice for each layer. Some hundred
        samples suffice
    :type batch: torch.Tensor, SpikeTimes or SpikeEvents

    :param share: the share in which each neuron fires, above 0 and below 1. Defaults to 0.5
    :type share: float, optional

    :return: `net`
    :rtype: torch.nn.Module
    :raises ValueError: `share` is not between 0 and 1, `net` has no such layer, or the membrane of
        a neuron is not proportional to the weights in front of it
    """
    if not 0 < share < 1:
        raise ValueError(f"share={share} must be above 0 and below 1")
    layers = _layers_of(net, batch)
    if not layers:
        raise ValueError(
            "net has no neurons of this package behind nn.Linear, nn.Conv1d or nn.Conv2d: pass a "
            "network of such layers"
        )
    names = {module: name for name, module in net.named_modules()}
    for layer in layers:
        peaks = _peaks(net, batch, layer)
        if len(peaks) < 2:
            raise ValueError("batch has one sample: pass 2 or more, better some hundred")
        _scale(layer, peaks, share, functools.partial(_peaks, net, batch, layer), names)
    return net


def _scale(
    layer: _Layer,
    peaks: Tensor,
    share: float,
    again: Callable[[], Tensor],
    names: dict[nn.Module, str],
) -> None:
    """Scale one layer by the maxima (n, units) of its membranes, and check the new maxima."""
    wanted, reachable = round(len(peaks) * share), (peaks > 0).sum(0)
    firing = torch.where(reachable > wanted, wanted, reachable // 2)
    last = (len(peaks) - firing).clamp(1, len(peaks) - 1)[None]
    ordered = peaks.sort(0).values
    # Between the highest membrane that stays silent and the lowest one that fires
    level = (ordered.gather(0, last - 1)[0] + ordered.gather(0, last)[0]) / 2
    threshold: Tensor = layer.neuron.threshold  # type: ignore[assignment]
    threshold = threshold.flatten().to(level.dtype).expand(len(level))
    factor = torch.where((firing > 0) & (threshold > 0), threshold / level, 1.0)
    weights: Any = layer.weights
    before = [(x, x.clone()) for x in (weights.weight, weights.bias) if x is not None]
    for parameter, _ in before:
        parameter.mul_(factor.to(parameter.dtype).view(-1, *[1] * (parameter.dim() - 1)))
    expected = peaks * factor
    if not torch.allclose(again(), expected, rtol=1e-2, atol=1e-2 * expected.abs().max().item()):
        for parameter, value in before:
            parameter.copy_(value)
        raise ValueError(
            f"the membrane of {names[layer.neuron]!r} is not proportional to the weights of "
            f"{names[layer.weights]!r}, which were called last before it: a normalization or a "
            "second path lies between them. Scale this layer yourself, or calibrate the network "
            "without it"
        )


def _hooked(
    modules: Sequence[nn.Module], hook: Callable[..., None], run: Callable[[], Any]
) -> None:
    """Run a forward pass with a hook in front of some modules."""
    handles = [module.register_forward_pre_hook(hook) for module in modules]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()


def _layers_of(net: nn.Module, batch: Any) -> list[_Layer]:
    """The layers in the order of their first calls."""
    found: list[_Layer] = []
    latest: list[nn.Module] = []

    def called(module: nn.Module, inputs: Any) -> None:
        if isinstance(module, SingleSpikeLayer):
            latest.append(module)
        if isinstance(module, _WEIGHTS):
            latest.append(module)
        elif latest and all(layer.neuron is not module for layer in found):
            found.append(_Layer(latest[-1], module))

    modules = [m for m in net.modules() if isinstance(m, (SingleSpikeNeuron, *_WEIGHTS))]
    _hooked(modules, called, lambda: net(batch))
    return found


def _peaks(net: nn.Module, batch: Any, layer: _Layer) -> Tensor:
    """The maximum over time of the membrane without spikes, but at the last step: (n, units)."""

    def stop(module: nn.Module, inputs: Any) -> None:
        raise _Found(inputs[0])

    try:
        _hooked([layer.neuron], stop, lambda: net(batch))
    except _Found as found:
        given = to_dense(found.input)
    neuron: Any = copy.deepcopy(layer.neuron)
    neuron.threshold.data = torch.full_like(neuron.threshold, torch.inf)
    neuron.init_hidden, neuron.spike_format = False, "dense"
    if isinstance(neuron, SingleSpikeLayer):
        mem = neuron._run(neuron.dense_current(given)[:-1]).mem
    else:
        *_, mem = neuron(given[:-1])
    assert mem is not None
    axis = -1 if isinstance(layer.weights, nn.Linear | SingleSpikeLinear) else 1
    peaks = mem.amax(0).movedim(axis, -1)
    units = len(layer.weights.weight)  # type: ignore[arg-type]
    if peaks.shape[-1] != units:
        raise ValueError(
            f"the neurons have {peaks.shape[-1]} features, but the layer in front of them has "
            f"{units} outputs: put nn.Flatten behind the neurons"
        )
    return peaks.reshape(-1, units)
