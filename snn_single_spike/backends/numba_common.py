"""What the compiled CPU loops share: how they are compiled, what they are given, and threads.

Threads are Python threads (the loops hold no GIL), as many as ``torch.get_num_threads()``: numba's
own threading layers clash with forked data loaders.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

from .memory import empty
from .simd import absolute, exp, full_like, where

# Options as the loops take them
RESETS = {"none": 0, "subtract": 1, "zero": 2, "clear": 3}
RULES = {"masked": 0, "pre_spike": 1, "straight_through": 2, "none": 3}
SURROGATES = {
    "atan": 0,
    "fast_sigmoid": 1,
    "sigmoid": 2,
    "straight_through_estimator": 3,
    "triangular": 4,
    "heaviside": 5,
    "spike_rate_escape": 6,
    "SFS": 7,
    "LSO": 8,
}
REDUCTIONS = {"sum": 0, "max": 1, "last": 2}
_ATAN = SURROGATES["atan"]


def compiled(function: Any, **options: Any) -> Any:
    """Compile a loop, in numba's cache if there is one."""
    options |= {"nogil": True, "error_model": "numpy"}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # nowhere to write a cache: compile again in every process
        return numba.njit(**options)(function)


@numba.njit(forceinline=True, error_model="numpy")
def surrogate_slope(distance, surrogate, a, b):
    """s'(V - theta), in vectors."""
    if surrogate == _ATAN:
        x = np.pi / 2 * a * distance
        return 0.5 * a / (1.0 + x * x)
    if surrogate == 1:
        x = a * absolute(distance) + 1.0
        return 1.0 / (x * x)
    if surrogate == 2:
        e = exp(0.0 - absolute(a * distance))  # cannot overflow
        return a * e / ((1.0 + e) * (1.0 + e))
    if surrogate == 3:
        return full_like(distance, 1.0)
    if surrogate == 4:
        return where(distance < 0.0, full_like(distance, a), -a)
    if surrogate == 5:
        return where(distance > 0.0, full_like(distance, 1.0), 0.0)
    if surrogate == 6:
        return b * exp(0.0 - a * absolute(distance - 1.0))
    if surrogate == 7:
        x = a * absolute(distance) + 1.0
        return where(distance > b, 1.0 / (x * x), 0.0)
    return where(distance > 0.0, full_like(distance, 1.0), a)


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
