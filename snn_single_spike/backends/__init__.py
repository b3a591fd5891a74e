"""Selects the backend: by device, or by name. There is no silent fallback.

========== =================================== =======================================
backend    implementation                      requires
========== =================================== =======================================
``triton`` fused kernels, one launch each way  a GPU and triton (or its interpreter)
``numba``  fused loops, compiled on first use  a CPU and numba
``torch``  plain torch, in cache-sized blocks  nothing; supports every device and dtype
========== =================================== =======================================

Every backend is a package with the modules ``neuron``, ``linear``, ``conv`` and ``readout``, which
launch one operator each on contiguous tensors.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import os
import warnings
from types import ModuleType

from torch import cuda  # not torch: backends.torch is a backend

from ._compiling import constant_when_compiled

BACKENDS = ("triton", "numba", "torch")

_INSTALL = {"triton": "pip install triton", "numba": "pip install numba"}

PROCESS = os.getpid()
"""The process that has imported the package. One that is forked from it has another number."""

logger = logging.getLogger("snn_single_spike")


# find_spec does not import the packages.
_INSTALLED = {name: importlib.util.find_spec(name) is not None for name in ("triton", "numba")}


def interpreted() -> bool:
    """Whether Triton kernels run in Triton's interpreter, which supports CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


@functools.cache
def _numba_obstacle() -> str | None:
    """The reason why numba cannot compile in this process; None if it can. Imports numba."""
    if not _INSTALLED["numba"]:
        return f"numba is not installed: {_INSTALL['numba']}"
    try:
        numba = importlib.import_module("numba")
    except Exception as error:  # e.g. a numpy or an llvmlite that this numba does not support
        found = f"{type(error).__name__}: {error}".removesuffix(": ")
        return f"numba cannot be imported ({found}): {_INSTALL['numba']} --upgrade"
    if numba.config.DISABLE_JIT:
        return "numba's compiler is switched off: unset NUMBA_DISABLE_JIT"
    return None


@constant_when_compiled
def explain(device_type: str) -> tuple[str, str]:
    """The backend that ``auto`` selects for a device type, and the reason as text."""
    if device_type == "cuda":
        if _INSTALLED["triton"]:
            return "triton", "a GPU, and triton is installed"
        return "torch", f"a GPU, but triton is not installed: {_INSTALL['triton']}"
    if device_type == "cpu":
        obstacle = _numba_obstacle()
        if not obstacle:
            return "numba", "a CPU, and numba is installed"
        return "torch", f"a CPU, but {obstacle}"
    return "torch", f"there are no kernels for device type {device_type!r}"


@functools.cache
def _warn_of_plain_torch(reason: str) -> None:
    """Warn once in a process, at the first layer that runs plain torch."""
    warnings.warn(
        f"snn_single_spike runs plain torch, which is several times slower: {reason}", stacklevel=4
    )


@constant_when_compiled
def select(backend: str, device_type: str) -> str:
    """Resolve the ``backend`` argument for tensors on ``device_type``.

    :raises ValueError: ``backend`` is not one of ``auto``, ``triton``, ``numba``, ``torch``
    :raises RuntimeError: the named backend cannot run here; the message names what is missing
    """
    if backend == "auto":
        chosen, reason = explain(device_type)
        if chosen == "torch" and device_type in ("cpu", "cuda"):
            _warn_of_plain_torch(reason)
        return chosen
    if backend not in BACKENDS:
        raise ValueError(
            f"backend={backend!r} is not known: use 'auto' or one of "
            f"{', '.join(map(repr, BACKENDS))}"
        )
    obstacle = missing(backend, device_type)
    if obstacle:
        raise RuntimeError(f"backend={backend!r} cannot run: {obstacle}")
    return backend


def missing(backend: str, device_type: str) -> str | None:
    """The reason why ``backend`` cannot run on ``device_type``; None if it can run."""
    if backend == "torch":
        return None
    on_a_gpu = device_type == "cuda" or interpreted()
    if backend == "numba" and (obstacle := _numba_obstacle()):
        return obstacle
    if not _INSTALLED[backend] and on_a_gpu:
        return f"{backend} is not installed: {_INSTALL[backend]}"
    if backend == "numba" and device_type != "cpu":
        return (
            f"numba runs on CPU tensors, but the tensors are on {device_type!r}; use backend='auto'"
        )
    if backend == "triton" and not on_a_gpu:
        gpu = "move them with .to('cuda')" if cuda.is_available() else "this machine has no GPU"
        return (
            f"triton requires tensors on a GPU, but the tensors are on {device_type!r} ({gpu}); "
            "use backend='auto', or set TRITON_INTERPRET=1 before the first import of triton "
            "to run the kernels slowly on the CPU"
        )
    return None


def reads_shares(backend: str) -> bool:
    """Whether linear layers of a backend read a spike that is shared between two steps once."""
    return hasattr(load(backend, "linear"), "SPLITS")


@functools.cache
def load(backend: str, op: str) -> ModuleType:
    """Import the implementation of an operator, once, on its first use."""
    logger.info("using backend %s for %s", backend, op)
    return importlib.import_module(f"{__name__}.{backend}.{op}")
