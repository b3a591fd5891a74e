"""numpy views of CPU tensors."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor

_TYPES = {
    dtype: torch.empty(0, dtype=dtype, device="cpu").numpy().dtype
    for dtype in (
        *(torch.float64, torch.float32, torch.float16, torch.bool, torch.uint8),
        *(torch.int8, torch.int16, torch.int32, torch.int64),
    )
}

_Memory = ctypes.c_char * sys.maxsize
"""Memory from an address on: the tensor knows its extent."""


def as_numpy(tensor: Tensor, dtype: type[np.generic] | None = None) -> np.ndarray:
    """A numpy view of a CPU tensor, as ``tensor.detach().numpy()``.

    ``dtype`` is another type of the same size, as which the view reads the memory.

    ``numpy()`` marks the memory as not resizable, for ever. Then the tensor cannot be the ``out=``
    of a larger result, and FSDP, which frees and allocates its parameters, cannot train. This view
    leaves the tensor as it is. It must not be used after the tensor is resized.

    :raises RuntimeError: the memory of the tensor was freed
    """
    shape = tuple(tensor.shape)  # numpy is slow with a torch.Size
    kind = _TYPES[tensor.dtype] if dtype is None else np.dtype(dtype)
    if tensor.is_neg():
        tensor = tensor.resolve_neg()
    address = tensor.data_ptr()
    if address <= tensor.storage_offset() * kind.itemsize:  # of freed memory, which begins at 0
        if not tensor.nbytes:
            return np.empty(shape, kind)
        raise RuntimeError(
            f"a tensor of shape {shape} has no memory: it was freed, as FSDP frees the weights of "
            "a layer after its call. FSDP supports units that take and return tensors: shard the "
            "layers that pass spike times to each other, and a linear layer with the neurons or "
            "the readout behind it, as one unit, fully_shard(nn.Sequential(...))"
        )
    memory: Any = _Memory.from_address(address)
    memory.tensor = tensor  # the array keeps it alive
    if tensor.is_contiguous():
        return np.ndarray(shape, kind, memory)
    return np.ndarray(shape, kind, memory, 0, [step * kind.itemsize for step in tensor.stride()])
