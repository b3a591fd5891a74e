"""Threads for the compiled CPU loops, as many as ``torch.get_num_threads()``.

Where torch uses OpenMP, the loops run in torch's own team of threads. For milliseconds after an
operation of torch, its threads wait for more work on their cores without giving them up. Threads of
our own would share these cores with threads that wait.

Elsewhere they are Python threads (the loops hold no GIL): without OpenMP, and in a forked process,
where a team of OpenMP does not work. Numba's own threading layers do not work there either.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

_PROCESS = os.getpid()
_Body = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@functools.cache
def _openmp() -> Callable[..., None] | None:
    """``GOMP_parallel(body, data, threads, flags)`` of the OpenMP that torch loaded, if it did."""
    library = Path(torch.__file__).with_name("lib") / "libtorch_cpu.so"
    try:
        # A name is looked up in the libraries that torch depends on, too.
        loaded = ctypes.CDLL(str(library), mode=os.RTLD_NOW | os.RTLD_NOLOAD)
        parallel: Callable[..., None] = loaded.GOMP_parallel
    except (AttributeError, OSError):  # no OpenMP, or a system whose modes have other names
        return None
    return parallel


@functools.cache
def _pool(process: int) -> ThreadPoolExecutor:
    """Worker threads; a forked process gets its own."""
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="snn_single_spike")


def in_threads(kernel: Callable[..., None], calls: list[tuple[object, ...]]) -> None:
    """
    Call ``kernel`` with each tuple of arguments. The threads take the calls from one list.

    :raises Exception: the first error of a call, after all threads have stopped
    """
    threads = min(torch.get_num_threads(), len(calls))
    if threads < 2 or sys.is_finalizing():  # the interpreter has ended all other threads
        for call in calls:
            kernel(*call)
        return
    left = iter(calls)
    errors: list[BaseException] = []

    def work(_: object = None) -> None:
        try:
            for call in left:
                kernel(*call)
        except BaseException as error:  # also KeyboardInterrupt: C code cannot pass it on
            errors.append(error)

    parallel = _openmp() if os.getpid() == _PROCESS else None
    if parallel is not None:
        # A smaller team than that of torch would end the other threads.
        parallel(_Body(work), None, torch.get_num_threads(), 0)
    else:
        _in_python_threads(work, threads)
    if errors:
        raise errors[0]


def _in_python_threads(work: Callable[[], None], threads: int) -> None:
    helpers = []
    with contextlib.suppress(RuntimeError):  # at its exit, the interpreter takes no new work
        helpers += [_pool(os.getpid()).submit(work) for _ in range(threads - 1)]
    work()
    for helper in helpers:
        if not helper.cancel():  # one that has not started has nothing left to do
            helper.result()
