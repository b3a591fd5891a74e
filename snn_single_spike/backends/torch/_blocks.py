"""Blocks of neighbouring neurons that stay in the cache of a CPU."""

from __future__ import annotations

import torch
from torch import Tensor

# Neurons per block on a CPU: one row of float32 is 64 KB, so that the rows of a step stay
# in L2. With several threads torch splits an operation from 32768 elements up.
_BLOCK_SINGLE, _BLOCK_PER_THREAD = 16384, 32768


def split_blocks(lanes: int, device: torch.device) -> list[slice]:
    size = lanes
    if device.type == "cpu":
        threads = torch.get_num_threads()
        size = _BLOCK_SINGLE if threads == 1 else _BLOCK_PER_THREAD * threads
    return [slice(start, min(start + size, lanes)) for start in range(0, lanes, size)]


def per_neuron(parameter: Tensor, lanes: int) -> Tensor:
    """A parameter (P,) as one value per lane (M,), or (1,) as it is."""
    return parameter if parameter.numel() == 1 else parameter.repeat(lanes // parameter.numel())


def cut_parameter(parameter: Tensor, block: slice) -> Tensor:
    return parameter if parameter.numel() == 1 else parameter[block]


def initial_state(state: Tensor | None, block: slice, like: Tensor, dtype: torch.dtype) -> Tensor:
    """The membrane, or a synaptic current, before the first step."""
    if state is None:
        return torch.zeros(block.stop - block.start, dtype=dtype, device=like.device)
    return state[block].to(dtype)
