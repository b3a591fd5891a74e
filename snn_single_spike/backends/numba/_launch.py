"""What the launchers of the compiled CPU loops share: what loops are given, and threads.

Threads are Python threads (the loops hold no GIL), as many as ``torch.get_num_threads()``: numba's
own threading layers clash with forked data loaders.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from snn_single_spike.kernels.numba.block import BLOCK

from ..memory import empty

_PIECE = 1 << 20  # elements (T * M) that a thread takes at once


@functools.cache
def _pool(process: int) -> ThreadPoolExecutor:
    """Worker threads; a forked process gets its own."""
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="snn_single_spike")


def in_threads(kernel: Callable[..., None], calls: list[tuple[object, ...]]) -> None:
    """Call ``kernel`` with each of the arguments, which torch's number of threads take from one
    list.

    A thread may be late by milliseconds where torch's own wait for work on its core: then the
    others do its share.
    """
    left = iter(calls)

    def work() -> None:
        for arguments in left:
            kernel(*arguments)

    threads = min(torch.get_num_threads(), len(calls))
    helpers = []
    with contextlib.suppress(RuntimeError):  # shutting down, the interpreter takes no new work
        helpers += [_pool(os.getpid()).submit(work) for _ in range(threads - 1)]
    work()
    for helper in helpers:
        if not helper.cancel():
            helper.result()


@functools.cache
def _nothing(dimensions: int, dtype: torch.dtype) -> np.ndarray:
    """Stands for None in a compiled loop."""
    return torch.empty((0,) * dimensions, dtype=dtype, device="cpu").numpy()


def as_array(tensor: Tensor | None, dimensions: int, dtype: torch.dtype) -> np.ndarray:
    """A numpy view, widened to ``dtype`` where needed; an empty array for None."""
    if tensor is None:
        return _nothing(dimensions, dtype)
    tensor = tensor.detach()
    if tensor.dtype != dtype:
        tensor = empty(tuple(tensor.shape), dtype=dtype, device=tensor.device).copy_(tensor)
    return tensor.numpy()


def run_pieces(
    kernel: Callable[..., None], num_steps: int, low: int, high: int, *arguments: object
) -> None:
    """Run ``kernel`` over the lanes from ``low`` to ``high``, in pieces."""
    piece = max(BLOCK, _PIECE // num_steps // BLOCK * BLOCK)
    if torch.get_num_threads() == 1:
        piece = max(high - low, 1)
    pieces = [(start, min(start + piece, high)) for start in range(low, high, piece)]
    in_threads(kernel, [(*lanes, *arguments) for lanes in pieces])


class WidenedOutputs:
    """Output arrays in state precision for outputs of a half type, copied back at the end."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._pairs: list[tuple[Tensor, Tensor]] = []

    def array(self, tensor: Tensor | None, dimensions: int) -> np.ndarray:
        if tensor is None or tensor.dtype == self.dtype:
            return as_array(tensor, dimensions, self.dtype)
        wide = empty(tuple(tensor.shape), dtype=self.dtype, device=tensor.device)
        self._pairs.append((tensor, wide))
        return wide.numpy()

    def copy_back(self) -> None:
        for tensor, wide in self._pairs:
            tensor.copy_(wide)
