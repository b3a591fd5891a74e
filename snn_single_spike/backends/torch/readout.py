"""The non-firing readout in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from .._types import ReadoutOutputs, state_dtype
from ._blocks import cut_parameter, initial_state, per_neuron, split_blocks


def readout(
    current: Tensor, beta: Tensor, mem_0: Tensor | None, reduction: str, out: ReadoutOutputs
) -> None:
    num_steps, neurons = current.shape
    dtype = state_dtype(current.dtype)
    clamped = beta.clamp(0, 1)
    active = per_neuron(clamped == beta, neurons)
    decays = per_neuron(clamped, neurons)
    for block in split_blocks(neurons, current.device):
        decay = cut_parameter(decays, block)
        v = initial_state(mem_0, block, current.device, dtype)
        slope = torch.zeros_like(v)
        value = torch.full_like(v, -torch.inf) if reduction == "max" else torch.zeros_like(v)
        value_slope = torch.zeros_like(v)
        index = torch.full_like(v, 0 if reduction == "max" else num_steps - 1, dtype=torch.int64)
        for t, x in enumerate(current[:, block].unbind(0)):
            if out.sensitivity is not None:
                slope = v + decay * slope
            v = decay * v + x
            if reduction == "sum":
                value += v
                value_slope += slope
            elif reduction == "max":
                better = (v > value) | (v.isnan() & ~value.isnan())
                value = torch.where(better, v, value)
                value_slope = torch.where(better, slope, value_slope)
                index.masked_fill_(better, t)
            else:
                value, value_slope = v, slope
        out.value[block] = value
        if out.step is not None:
            out.step[block] = index
        if out.sensitivity is not None:
            out.sensitivity[block] = value_slope.masked_fill(~cut_parameter(active, block), 0.0)
