"""The papers' networks: spiking hidden layers, and a readout that never fires."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import snntorch as snn
import torch
from snntorch import surrogate
from torch import Tensor, nn

from .. import FusedLeaky, LeakyReadout, SingleSpikeLeaky, SpikeDelay
from ..functional import spike_count
from . import ExperimentError, layers
from .config import Config
from .datasets import DATASETS
from .layers import Layer
from .rules import parse_surrogate


class LeakyLoop(snn.Leaky):
    """snn.Leaky over a whole sequence, in a loop over time as its users write it."""

    def __init__(self, *args: Any, once: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.once = once

    def forward(self, current: Tensor) -> Tensor:
        """Spikes from the current `(T, B, *features)`; with `once` each neuron's first spike."""
        mem, spikes = torch.zeros_like(current[0]), []
        silent = torch.ones_like(current[0])
        for step in current.unbind(0):
            spk, mem = super().forward(step, mem)
            if self.once:
                spk = spk * silent
                silent = silent - spk.detach()
            spikes.append(spk)
        return torch.stack(spikes).to(current.dtype)  # snnTorch returns float32


class LeakyReadoutLoop(snn.Leaky):
    """The readout in a loop over time: snn.Leaky without a reset."""

    def __init__(self, beta: Tensor, learn_beta: bool, *, reduction: str, scale: float) -> None:
        super().__init__(beta, learn_beta=learn_beta, reset_mechanism="none")
        self.reduction, self.scale = reduction, scale

    def forward(self, current: Tensor) -> Tensor:
        mem, mems = torch.zeros_like(current[0]), []
        for step in current.unbind(0):
            _, mem = super().forward(step, mem)
            mems.append(mem)
        if self.reduction == "last":
            return self.scale * mem
        stacked = torch.stack(mems)
        return self.scale * (stacked.sum(0) if self.reduction == "sum" else stacked.max(0).values)


class EachStep(nn.Module):
    """Applies an image layer to every time step, with time folded into the batch."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Any) -> Any:
        out = self.layer(x.flatten(0, 1) if isinstance(x, Tensor) else x.fold())
        return out.unflatten(0, x.shape[:2]) if isinstance(out, Tensor) else out.unfold()


class Network(nn.Module):
    """
    The hidden layers of `config.layers`, and a leaky readout of the classes.

    Weights are uniform in ±sqrt(1 / n_in), biases 0. With `config.delays` a learned delay of each
    unit stands in front of every linear layer. For one seed all kinds of neurons start from
    the same weights, and share the keys of `state_dict`.

    Inputs: x of shape `(T, B, *features)`, a tensor, spike times or events. The layers in front of
    the first neurons compute one step of an expanded tensor, whose steps are all the same.

    Outputs: scores `(B, classes)`, and the spikes `(T, B, *features)` of each hidden layer

    :raises ExperimentError: invalid layers, or layers that do not fit the data
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        spec = DATASETS[config.dataset]
        self.stages = nn.ModuleList()
        features = spec.features
        for layer in layers.parse(config.layers, spec.features, config.padding):
            if layer.kind == "linear" and config.delays:
                if config.coding == "current" and not self.stages:
                    raise ExperimentError(
                        f"--delays {config.delays}: the delays in front of the first layer are of "
                        "spikes, and with --coding current the input has none; use --coding "
                        "latency, or omit --delays"
                    )
                self.stages.append(SpikeDelay(layer.given, learn_delay=True))
            self.stages.append(_layer(layer, config.padding))
            if layer.fires:
                self.stages.append(_neuron(layer.features, config))
            features = layer.features
        units = math.prod(features)
        self.output_delay = SpikeDelay(units, learn_delay=True) if config.delays else None
        self.output = nn.Linear(units, spec.classes)
        beta = torch.full((spec.classes,), config.readout_beta)
        readout = LeakyReadoutLoop if config.neuron.endswith("loop") else LeakyReadout
        how: dict[str, Any] = {"reduction": config.readout, "scale": config.score_scale}
        self.readout: nn.Module = readout(beta, config.learn_beta, **how)
        self._initialize(config)

    def forward(self, x: Any) -> tuple[Tensor, list[Any]]:
        hidden = []
        for stage in self.stages:
            if isinstance(stage, nn.Linear | SpikeDelay):
                x = x.flatten(2)
            if isinstance(stage, snn.Leaky):
                x = stage(x)
                hidden.append(x)
            elif isinstance(x, Tensor) and x.stride(0) == 0:  # the same at every step
                x = stage(x[:1]).expand(len(x), *(-1 for _ in x.shape[1:]))
            else:
                x = stage(x)
        x = x.flatten(2)
        x = x if self.output_delay is None else self.output_delay(x)
        return self.readout(self.output(x)), hidden

    def _initialize(self, config: Config) -> None:
        weighted = [m for m in self.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        scales = config.weight_scale
        if len(scales) not in (1, len(weighted)):
            raise ExperimentError(
                f"--weight-scale {','.join(map(str, scales))}: give 1 factor, or {len(weighted)}, "
                f"one for each layer of weights (the recipe of {config.dataset} gives its own "
                "where the option is left out)"
            )
        if len(scales) == 1:
            scales = scales * len(weighted)
        for layer, scale in zip(weighted, scales, strict=True):
            bound = scale / math.sqrt(layer.weight[0].numel())
            nn.init.uniform_(layer.weight, -bound, bound)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        for module in self.modules():
            if isinstance(module, SpikeDelay) and config.delays:
                nn.init.uniform_(module.delay, 0, config.delays)


def _layer(layer: Layer, padding: str) -> nn.Module:
    if layer.kind == "linear":
        return nn.Linear(layer.given[0], layer.features[0])
    if layer.kind == "convolution":
        channels, features = layer.given[0], layer.features[0]
        return EachStep(nn.Conv2d(channels, features, layer.size, padding=padding))
    return EachStep((nn.MaxPool2d if layer.kind == "maximum" else nn.AvgPool2d)(layer.size))


def _neuron(features: tuple[int, ...], config: Config) -> nn.Module:
    """Neurons with one decay for each neuron, or for each feature map."""
    channels, *maps = features
    beta = torch.full((channels, *(1 for _ in maps)), config.beta)
    name, parameter = parse_surrogate(config.surrogate)
    make: Callable = getattr(surrogate, name)
    spike_grad = make() if parameter is None else make(parameter)
    if config.neuron == "single-spike":
        return SingleSpikeLeaky(
            beta,
            spike_grad=spike_grad,
            init_hidden=True,
            learn_beta=config.learn_beta,
            gradient=config.gradient,
            spike_format=config.spike_format,
        )
    if config.neuron == "multi-spike":
        return FusedLeaky(
            beta,
            spike_grad=spike_grad,
            init_hidden=True,
            learn_beta=config.learn_beta,
            spike_format=config.spike_format,
        )
    return LeakyLoop(
        beta,
        spike_grad=spike_grad,
        learn_beta=config.learn_beta,
        once=config.neuron == "single-spike-loop",
    )


def count_spikes(hidden: list[Any]) -> Tensor:
    """Total number of spikes of all hidden layers, differentiable."""
    return torch.stack([spike_count(x).sum() for x in hidden]).sum()
