"""Work space of the compiled CPU loops, which begins with a cache line.

The loops read and write vectors of a whole line. Numpy aligns to 16 bytes only, and then every
vector would touch two lines.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from snn_single_spike.kernels.numba.simd import LINE

from .._arrays import as_numpy
from ..memory import empty as reused

_MANY_BYTES = 1 << 18


def lines(size: int) -> np.ndarray:
    """Bytes that begin with a cache line, in reused memory if they are many."""
    if size >= _MANY_BYTES:
        return as_numpy(reused((size,), dtype=torch.uint8, device=torch.device("cpu")))
    memory = np.empty(size + LINE, np.uint8)  # in a third of the time of a tensor
    start = -memory.__array_interface__["data"][0] % LINE
    return memory[start : start + size]


def empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """As ``np.empty``."""
    kind = np.dtype(dtype)
    return lines(math.prod(shape) * kind.itemsize).view(kind).reshape(shape)


def zeros(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """As ``np.zeros``."""
    cleared = empty(shape, dtype)
    cleared.fill(0)
    return cleared
