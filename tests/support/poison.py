"""Memory that is allocated and not cleared, filled with values that no result survives."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from snn_single_spike import backends
from snn_single_spike.backends import memory

PATTERN = 0x7FFF
"""Every 16 bits: NaN in each floating type, and a large odd number in each wider integer type."""


def fill(array: np.ndarray) -> np.ndarray:
    words = array.reshape(-1).view(np.uint8)
    words[: len(words) // 2 * 2].view(np.uint16)[:] = PATTERN
    return array


class Numpy:
    """A numpy whose new arrays are poisoned, for the modules of launches."""

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    def empty(self, *arguments: Any, **options: Any) -> np.ndarray:
        return fill(np.empty(*arguments, **options))


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """
    In deterministic mode torch fills new tensors with NaN or the largest integer. This function
    fills the memory that the package reuses, and the numpy arrays of launches.
    """
    lend = memory._Blocks.lend

    def lend_filled(blocks: memory._Blocks, size: int) -> ctypes.Array[ctypes.c_char]:
        buffer = lend(blocks, size)
        fill(np.frombuffer(buffer, np.uint8))
        return buffer

    before = torch.are_deterministic_algorithms_enabled()
    warned = torch.is_deterministic_algorithms_warn_only_enabled()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory._Blocks, "lend", lend_filled)
        if backends.missing("numba", "cpu") is None:
            for name in ("_work_space", "linear", "conv"):
                patch.setattr(f"snn_single_spike.backends.numba.{name}.np", Numpy())
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before, warn_only=warned)
