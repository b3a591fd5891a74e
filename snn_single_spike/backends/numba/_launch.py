"""What the launchers of the compiled CPU loops share: array views and pieces for the threads."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from snn_single_spike.kernels.numba import arguments
from snn_single_spike.kernels.numba.arguments import SpikeGradient
from snn_single_spike.kernels.numba.block import BLOCK
from snn_single_spike.kernels.numba.compiling import RULES
from snn_single_spike.kernels.numba.simd import LANES, has_float16
from snn_single_spike.kernels.numba.surrogate import SURROGATES

from .._arrays import as_numpy
from .._events import Events
from .._surrogate import Surrogate
from .._types import state_dtype
from ..memory import empty
from ._threads import in_threads

_PIECE = 1 << 20  # elements (T * M) that a thread takes at once


def plain(*arguments: object) -> tuple[object, ...]:
    """Named tuples as plain ones: numba determines their types in less time."""
    return tuple([tuple(x) if isinstance(x, tuple) else x for x in arguments])


def run_pieces(
    kernel: Callable[..., None], num_steps: int, low: int, high: int, *arguments: object
) -> None:
    """Run ``kernel`` over the neurons from ``low`` to ``high``, in pieces."""
    if low == high:
        return
    piece = max(BLOCK, _PIECE // num_steps // BLOCK * BLOCK)
    if torch.get_num_threads() == 1:
        piece = high - low
    pieces = [(start, min(start + piece, high)) for start in range(low, high, piece)]
    shared = plain(*arguments)
    in_threads(kernel, [(*neurons, *shared) for neurons in pieces])


def run_vectors(
    kernel: Callable[..., None], num_steps: int, neurons: int, *arguments: object
) -> None:
    """Run ``kernel`` over all neurons, in whole vectors.

    If the neurons fill no whole number of vectors, the last vector begins inside of the one before
    and computes some neurons again. Fewer neurons than one vector are padded (:class:`Arrays`).
    """
    run_pieces(kernel, num_steps, 0, neurons // LANES * LANES, *arguments)
    if neurons % LANES:
        last = max(neurons, LANES)
        run_pieces(kernel, num_steps, last - LANES, last, *arguments)


# Numba has no half types: the loops convert their bits in registers (kernels/numba/simd.py).
_BITS: dict[torch.dtype, type[np.generic]] = {torch.bfloat16: np.int16}
if has_float16():
    _BITS[torch.float16] = np.uint16


def loop_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type of rows (T, M) of a layer in the vector loops."""
    return dtype if dtype in _BITS else state_dtype(dtype)


@functools.cache
def _nothing(dimensions: int, dtype: torch.dtype) -> np.ndarray:
    """The empty array that a compiled loop takes for None."""
    return as_numpy(torch.empty((0,) * dimensions, dtype=dtype, device="cpu"), _BITS.get(dtype))


def as_array(tensor: Tensor | None, dimensions: int, dtype: torch.dtype) -> np.ndarray:
    """A numpy view, widened to ``dtype`` where needed; an empty array for None."""
    if tensor is None:
        return _nothing(dimensions, dtype)
    if tensor.dtype != dtype:
        tensor = empty(tuple(tensor.shape), dtype=dtype, device=tensor.device).copy_(
            tensor.detach()
        )
    return as_numpy(tensor, _BITS.get(dtype))


def as_events(events: Events, dtype: torch.dtype) -> arguments.Events:
    values, late = events.values, None
    if values is not None and events.shared:
        values, late = values.contiguous().unbind(0)
    return arguments.Events(
        offsets=as_numpy(events.offsets),
        times=as_numpy(events.times),
        units=as_numpy(events.units),
        values=as_array(values, 1, dtype),
        late=as_array(late, 1, dtype),
    )


def spike_gradient(rule: str, surrogate: Surrogate, dtype: torch.dtype) -> SpikeGradient:
    scalar = np.float64 if dtype == torch.float64 else np.float32
    return SpikeGradient(
        rule=RULES[rule],
        surrogate=SURROGATES[surrogate.name],
        a=scalar(surrogate.a),
        b=scalar(surrogate.b),
    )


class Arrays:
    """The arrays of one call of a loop.

    Tensors of another type than the loop's are converted, and fewer neurons than one vector are
    padded. :meth:`copy_back` completes the results.
    """

    def __init__(self, neurons: int = LANES) -> None:
        self._pads = neurons < LANES
        self._padded: list[tuple[np.ndarray, np.ndarray]] = []
        self._widened: list[tuple[Tensor, Tensor]] = []

    def read(self, tensor: Tensor | None, dimensions: int, dtype: torch.dtype) -> np.ndarray:
        if tensor is None:
            return _nothing(dimensions, dtype)
        array = as_array(tensor, dimensions, dtype)
        if not self._pads:
            return array
        whole = np.empty((*array.shape[:-1], LANES), array.dtype)
        whole[..., : array.shape[-1]] = array
        return whole

    def write(self, tensor: Tensor | None, dimensions: int, dtype: torch.dtype) -> np.ndarray:
        if tensor is None:
            return _nothing(dimensions, dtype)
        if tensor.dtype != dtype:
            wide = empty(tuple(tensor.shape), dtype=dtype, device=tensor.device)
            self._widened.append((tensor, wide))
            tensor = wide
        array = as_array(tensor, dimensions, dtype)
        if not self._pads:
            return array
        whole = np.empty((*array.shape[:-1], LANES), array.dtype)
        self._padded.append((array, whole))
        return whole

    def copy_back(self) -> None:
        for array, whole in self._padded:
            array[...] = whole[..., : array.shape[-1]]
        for tensor, wide in self._widened:
            tensor.copy_(wide)
