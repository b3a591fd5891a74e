"""Large CPU tensors in memory that is kept for the next step.

A fresh (T, M) tensor of 51 MB is 12,500 page faults of 4 KB, which take longer (about 20 ms)
than computing it: the C library gives so large a block back to the system when it is freed,
and asks for it again. A training step wants the same blocks every time. So they are kept
here, on huge pages where the system grants them, and lent out again.

Kept but unused memory never exceeds what was lent out at once, and can be given back with
:func:`release`.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
import mmap
import os
import threading
import weakref
from collections import deque

import torch

_MIN_BYTES = 1 << 19  # below that the C library keeps what is freed by itself
_HUGE_PAGE = 2 << 20


class _Blocks:
    """Anonymous memory in blocks of whole huge pages, lent out and taken back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Filled by finalizers, which may run in the middle of anything and so take no lock
        self._returned: deque[mmap.mmap] = deque()
        self._free: list[mmap.mmap] = []  # the longest unused first
        self._lent = 0
        self._most_lent = 0

    def lend(self, size: int) -> ctypes.Array[ctypes.c_char]:
        """A buffer of ``size`` bytes; its block comes back when nothing refers to it any more."""
        pages = -(-size // _HUGE_PAGE) * _HUGE_PAGE
        with self._lock:
            self._collect()
            fitting = [block for block in self._free if pages <= len(block) <= 2 * pages]
            if fitting:
                block = min(fitting, key=len)
                self._free.remove(block)
            else:
                block = _map(pages)
            self._lent += len(block)
            self._most_lent = max(self._most_lent, self._lent)
        buffer = (ctypes.c_char * size).from_buffer(block)
        weakref.finalize(buffer, self._returned.append, block).atexit = False
        return buffer

    def renew_lock(self) -> None:
        self._lock = threading.Lock()

    def release(self) -> None:
        with self._lock:
            self._most_lent = 0
            self._collect()
            self._most_lent = self._lent

    def _collect(self) -> None:
        while self._returned:
            block = self._returned.popleft()
            self._lent -= len(block)
            self._free.append(block)
        while self._free and sum(map(len, self._free)) > self._most_lent:
            self._free.pop(0)  # unmapped with its last reference


def _map(size: int) -> mmap.mmap:
    if not hasattr(mmap, "MAP_PRIVATE"):  # Windows
        return mmap.mmap(-1, size)
    # Private: the default is memory that a forked process shares, and no huge pages.
    block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            block.madvise(mmap.MADV_HUGEPAGE)
    return block


_blocks = _Blocks()
if hasattr(os, "register_at_fork"):  # another thread may hold the lock at that moment
    os.register_at_fork(after_in_child=_blocks.renew_lock)


def empty(shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """``torch.empty``, from kept memory if it is a large CPU tensor."""
    size = math.prod(shape) * dtype.itemsize
    if size < _MIN_BYTES or device.type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)
    storage = torch.frombuffer(_blocks.lend(size), dtype=torch.uint8).untyped_storage()
    # Not a view of the bytes: autograd treats views that it did not make as suspect.
    whole = torch.empty(0, dtype=dtype, device=device)
    return whole.set_(storage, 0, shape)  # type: ignore[call-overload]


def copy(tensor: torch.Tensor) -> torch.Tensor:
    """``tensor.clone()``, into kept memory, and without torch's threads where ours follow.

    After their work they wait on their cores for milliseconds, which ours then share.
    """
    if tensor.device.type != "cpu" or torch.compiler.is_compiling():
        return tensor.clone()
    out = empty(tuple(tensor.shape), dtype=tensor.dtype, device=tensor.device)
    out.numpy()[...] = tensor.numpy()
    return out


def release() -> None:
    """Give memory that is kept but unused back to the system."""
    _blocks.release()
