"""Allocates large CPU tensors in memory that is reused from step to step.

A fresh (T, M) tensor of 51 MB causes 12,500 page faults of 4 KB. They take about 20 ms, which is
longer than the arithmetic, because the C library returns a freed block of this size to the system.
A training step allocates the same blocks every time, so this module keeps freed blocks and lends
them again. Blocks are whole huge pages, if the system grants them.

Unused memory never exceeds the most that was lent at once since the last :func:`release`, which
returns unused memory to the system. :func:`set_allocator` switches to torch's own memory, as the
environment variable ``SNN_SINGLE_SPIKE_MEMORY=torch`` does.
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

from ._arrays import as_numpy
from ._compiling import is_traced

ALLOCATORS = ("reuse", "torch")
VARIABLE = "SNN_SINGLE_SPIKE_MEMORY"

_MIN_BYTES = 1 << 19  # the C library keeps smaller freed blocks
_IN_ONE_THREAD = 1 << 15  # elements that torch copies without other threads
_HUGE_PAGE = 2 << 20
_MOST_SPARE = 32 << 20


class _Blocks:
    """Blocks of anonymous memory, of whole pages, that are lent and returned."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Finalizers append here. They may run at any point, so they take no lock.
        self._returned: deque[tuple[mmap.mmap, int]] = deque()
        self._free: list[mmap.mmap] = []  # the longest unused first
        self._lent = 0
        self._most_lent = 0
        self._spare = 0  # bytes of lent blocks beyond the sizes that were requested

    def lend(self, size: int) -> ctypes.Array[ctypes.c_char]:
        """A buffer of ``size`` bytes. Its block returns when the last reference is gone.

        :raises OSError: the system has no memory left
        """
        with self._lock:
            self._collect()
            pages, most = self._extent(size)
            fitting = [block for block in self._free if size <= len(block) <= most]
            if fitting:
                block = min(fitting, key=len)
                self._free.remove(block)
            else:
                block = self._map_or_make_room(pages)
            self._lent += len(block)
            self._spare += len(block) - size
            self._most_lent = max(self._most_lent, self._lent)
        buffer = (ctypes.c_char * size).from_buffer(block)
        weakref.finalize(buffer, self._returned.append, (block, size)).atexit = False
        return buffer

    def _extent(self, size: int) -> tuple[int, int]:
        """The size of a new block, and the most of a block that is lent again.

        Whole huge pages save page faults, and occupy up to four times a small size. So many results
        that are kept get blocks of their size.
        """
        huge = -(-size // _HUGE_PAGE) * _HUGE_PAGE
        if self._spare + huge - size <= _MOST_SPARE:
            return huge, 2 * huge
        return -(-size // mmap.PAGESIZE) * mmap.PAGESIZE, size + size // 8 + mmap.PAGESIZE

    def _map_or_make_room(self, size: int) -> mmap.mmap:
        try:
            return _map(size)
        except OSError:
            self._free.clear()
            return _map(size)

    def holds_unused(self) -> bool:
        return bool(self._returned or self._free)

    def renew_lock(self) -> None:
        self._lock = threading.Lock()

    def release(self) -> None:
        with self._lock:
            self._most_lent = 0
            self._collect()
            self._most_lent = self._lent

    def _collect(self) -> None:
        while self._returned:
            block, size = self._returned.popleft()
            self._lent -= len(block)
            self._spare -= len(block) - size
            self._free.append(block)
        while self._free and sum(map(len, self._free)) > self._most_lent:
            self._free.pop(0)  # unmapped with its last reference


def _map(size: int) -> mmap.mmap:
    if not hasattr(mmap, "MAP_PRIVATE"):  # Windows
        return mmap.mmap(-1, size)
    # Private: shared memory, the default, would be shared with forks and have no huge pages.
    block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if size % _HUGE_PAGE == 0 and hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without huge pages
            block.madvise(mmap.MADV_HUGEPAGE)
    return block


_blocks = _Blocks()
if hasattr(os, "register_at_fork"):  # another thread may hold the lock
    os.register_at_fork(after_in_child=_blocks.renew_lock)


def _checked(allocator: str, where: str) -> str:
    if allocator not in ALLOCATORS:
        raise ValueError(f"{where}={allocator!r} is not known: use 'reuse' or 'torch'")
    return allocator


_allocator = _checked(os.environ.get(VARIABLE) or "reuse", VARIABLE)


def allocator() -> str:
    """The allocator of large CPU tensors, `"reuse"` or `"torch"`."""
    return _allocator


def set_allocator(allocator: str) -> None:
    """
    Choose the allocator of CPU tensors of 0.5 MB and more that the layers return.

    :param allocator: `"reuse"` allocates them in memory that is kept and lent again, which saves
        the page faults of fresh memory. `"torch"` allocates them as `torch.empty` does. The
        default is `"reuse"`, or the environment variable `SNN_SINGLE_SPIKE_MEMORY`
    :type allocator: str
    :raises ValueError: the allocator is unknown
    """
    global _allocator
    _allocator = _checked(allocator, "allocator")
    if allocator == "torch":
        release()


def empty(shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """As ``torch.empty``; a large CPU tensor is allocated from reused memory."""
    size = math.prod(shape) * dtype.itemsize
    if size < _MIN_BYTES or device.type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)
    if _allocator == "torch":
        if _blocks.holds_unused():  # lent before the switch
            release()
        return torch.empty(shape, dtype=dtype, device=device)
    try:
        buffer = _blocks.lend(size)
    except (OSError, OverflowError):  # torch raises its own error, which training tools recognize
        return torch.empty(shape, dtype=dtype, device=device)
    storage = torch.frombuffer(buffer, dtype=torch.uint8).untyped_storage()
    # Not a view of the bytes, because autograd checks views for in-place changes.
    whole = torch.empty(0, dtype=dtype, device=device)
    return whole.set_(storage, 0, shape)  # type: ignore[call-overload]


def copy(tensor: torch.Tensor) -> torch.Tensor:
    """As ``tensor.clone()``, into reused memory and without torch's threads.

    After their work, torch's threads wait on their cores for milliseconds. Where the compiled loops
    run in Python threads, these would share their cores with them.
    """
    if tensor.device.type != "cpu" or is_traced() or tensor.numel() < _IN_ONE_THREAD:
        return tensor.clone()
    out = empty(tuple(tensor.shape), dtype=tensor.dtype, device=tensor.device)
    as_numpy(out)[...] = as_numpy(tensor)
    return out


def release() -> None:
    """Return unused memory to the system. Tensors that are in use stay as they are."""
    _blocks.release()
