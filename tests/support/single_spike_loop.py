"""snnTorch's loop over time, with every neuron held to one spike and one reset.

This is the reference of converted networks: the network as snnTorch runs it, with detached gates.
The self-check of converted models has the same gates; the tests do not rely on them.
"""

from __future__ import annotations

import copy

import torch
from snntorch._neurons.neurons import SpikingNeuron
from torch import Tensor, nn


def hold_to_one_spike(neuron: SpikingNeuron) -> None:
    """Replace the two functions of a neuron that depend on its threshold, for one forward pass.

    Membranes of two shapes are two layers of neurons.
    """
    plain = type(neuron).fire
    fired: dict[torch.Size, Tensor] = {}
    now: dict[torch.Size, Tensor] = {}

    def fire(mem: Tensor) -> Tensor:
        spikes, shape = plain(neuron, mem), mem.shape
        before = fired.get(shape, torch.zeros_like(spikes, dtype=torch.bool))
        out = spikes * ~before
        now[shape] = (out != 0).detach()
        fired[shape] = before | now[shape]
        return out.to(mem.dtype)  # some surrogates return float32

    def mem_reset(mem: Tensor) -> Tensor:
        if mem.shape not in now or not getattr(neuron, "reset_delay", True):
            return torch.zeros_like(mem)  # the neuron has been reset at its spike
        return now[mem.shape].to(mem.dtype)

    vars(neuron)["fire"], vars(neuron)["mem_reset"] = fire, mem_reset


def run(model: nn.Module, steps: list[Tensor]) -> tuple[nn.Module, list[Tensor]]:
    """The model that ran step by step, and its stacked outputs."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, SpikingNeuron):
            hold_to_one_spike(module)
    outputs = [model(x) for x in steps]
    outputs = [out if isinstance(out, tuple) else (out,) for out in outputs]
    return model, [torch.stack(values) for values in zip(*outputs, strict=True)]
