"""Large CPU tensors on huge pages.

A fresh (T, M) tensor of 51 MB is 12,500 page faults of 4 KB, which take longer (about
20 ms) than computing it. Where the kernel leaves huge pages to the program (``madvise``,
the default of most distributions), asking for them makes the same tensor 25 faults
(3-6 ms). The hint changes nothing else; where it cannot be given nothing is lost.
"""

from __future__ import annotations

import ctypes
import mmap
import sys

import torch

_MIN_BYTES = 4 << 20  # two huge pages: below that the faults are few
_MADV_HUGEPAGE = getattr(mmap, "MADV_HUGEPAGE", None)

_madvise = None
if sys.platform == "linux" and _MADV_HUGEPAGE is not None:
    _madvise = ctypes.CDLL(None).madvise
    _madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def empty(shape: tuple[int, ...], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """``torch.empty``, on huge pages if it is a large CPU tensor."""
    out = torch.empty(shape, dtype=dtype, device=device)
    size = out.numel() * out.element_size()
    if _madvise is not None and device.type == "cpu" and size >= _MIN_BYTES:
        first = -(-out.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        last = (out.data_ptr() + size) // mmap.PAGESIZE * mmap.PAGESIZE
        _madvise(first, last - first, _MADV_HUGEPAGE)
    return out
