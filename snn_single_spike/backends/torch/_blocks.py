"""Blocks of neighboring neurons that stay in the cache of a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._types import PARAMETERS, STATES, Neuron
from ..memory import empty

# Neurons per block on a CPU. One row of 16384 float32 is 64 KB, so the rows of a step stay in the
# second-level cache. torch uses several threads for operations of at least 32768 elements.
_BLOCK_SINGLE, _BLOCK_PER_THREAD = 16384, 32768


def split_blocks(neurons: int, device: torch.device) -> list[slice]:
    size = neurons
    if device.type == "cpu":
        threads = torch.get_num_threads()
        size = _BLOCK_SINGLE if threads == 1 else _BLOCK_PER_THREAD * threads
    return [slice(start, min(start + size, neurons)) for start in range(0, neurons, size)]


def workspace(
    num_steps: int, blocks: list[slice], dtype: torch.dtype, device: torch.device
) -> list[Tensor]:
    """(T, n) work space for each block. All blocks share one tensor, to avoid page faults."""
    work = empty((num_steps, blocks[0].stop), dtype=dtype, device=device)
    return [work[:, : block.stop - block.start] for block in blocks]


def per_neuron(parameter: Tensor, neurons: int) -> Tensor:
    """A parameter (P,) as one value for each neuron and sample (M,). (1,) stays unchanged."""
    return parameter if parameter.numel() == 1 else parameter.repeat(neurons // parameter.numel())


def cut_parameter(parameter: Tensor, block: slice) -> Tensor:
    return parameter if parameter.numel() == 1 else parameter[block]


def initial_state(
    state: Tensor | None, block: slice, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """The membrane, or a synaptic current, before the first step."""
    if state is None:
        return torch.zeros(block.stop - block.start, dtype=dtype, device=device)
    return state[block].to(dtype)


def spread(neuron: Neuron, neurons: int) -> Neuron:
    """Parameters as one value for each neuron and sample, or (1,), with clipped decays."""
    new: dict[str, Any] = {
        name: None if (value := getattr(neuron, name)) is None else per_neuron(value, neurons)
        for name in PARAMETERS
    }
    if neuron.clamp:
        new["beta"] = new["beta"].clamp(0, 1)
    if neuron.alpha is not None:
        new["alpha"] = new["alpha"].clamp(0, 1)
    return neuron._replace(**new)


def cut(neuron: Neuron, block: slice, device: torch.device, dtype: torch.dtype) -> Neuron:
    """One block of the result of :func:`spread`. An absent initial state becomes zeros."""
    new: dict[str, Any] = {
        name: None if (value := getattr(neuron, name)) is None else cut_parameter(value, block)
        for name in PARAMETERS
    }
    for name in STATES:
        new[name] = initial_state(getattr(neuron, name), block, device, dtype)
    if neuron.refractory is not None:
        never = torch.full_like(new["mem_0"], -neuron.refractory - 2, dtype=torch.int64)
        new["last_0"] = never if neuron.last_0 is None else neuron.last_0[block]
    return neuron._replace(**new)
