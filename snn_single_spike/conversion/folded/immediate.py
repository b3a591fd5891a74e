"""Neurons that reset at the step of their spike, ``reset_delay=False`` in snnTorch.

The first spike is the same as with a delayed reset, and so is the membrane before it. But snnTorch
lets the gradient flow through this reset, so the spike of a step depends on the surrogate gradients
of all steps before. Such a neuron runs step by step, in plain torch, and spikes at most once. The
layers around it run once for all steps.
"""

from __future__ import annotations

from typing import Any

import torch

from ...backends._decay import clip_decay
from ...spikes.lazy import LazyTensor

__all__ = ["resets_at_spike", "run_with_immediate_reset"]


def resets_at_spike(neuron: Any) -> bool:
    """Whether a neuron resets its membrane at the step of the spike."""
    return not getattr(neuron, "reset_delay", True) and neuron.reset_mechanism != "none"


def run_with_immediate_reset(neuron: Any, current: Any, mem: Any) -> Any:
    """
    The spikes of a Leaky, and its membrane if it returns one.

    :param neuron: a SingleSpikeLeaky
    :param current: of shape `(time, batch, *features)`
    :param mem: membrane before the first step, or None
    """
    current = current.to_dense() if isinstance(current, LazyTensor) else current
    mem = neuron._initial(current, mem=mem)["mem"]
    mem = torch.zeros_like(current[0]) if mem is None else mem
    beta, threshold = clip_decay(neuron.beta), neuron.threshold
    fired = torch.zeros_like(mem, dtype=torch.bool)
    spikes, membranes = [], []
    for step in current.unbind(0):
        mem = beta * mem + step
        fires = (mem > threshold) & ~fired
        path = neuron.spike_grad(mem - threshold).to(mem.dtype) * ~fired
        spike = fires.to(mem.dtype) + (path - path.detach())
        mem = mem - spike * (mem if neuron.reset_mechanism == "zero" else threshold)
        fired = fired | fires
        spikes.append((neuron.graded_spikes_factor * spike).to(current.dtype))
        membranes.append(mem.to(current.dtype))
    if not torch.compiler.is_compiling():
        neuron.mem = membranes[-1].detach()
    hidden = neuron.init_hidden and not neuron.output
    return torch.stack(spikes) if hidden else (torch.stack(spikes), torch.stack(membranes))
