"""Which implementation runs: chosen by device, can be forced, never falls back silently.

========== =================================== ======================================
backend    what it is                          needs
========== =================================== ======================================
``triton`` fused kernels, one launch each way  a GPU and triton (or its interpreter)
``numba``  fused loops, compiled on first use  a CPU and numba
``torch``  plain torch, in cache-sized blocks  nothing more; any device, any dtype
========== =================================== ======================================

Every implementation is a module with ``neuron_forward``, ``neuron_backward`` and
``leaky_readout``, called with two-dimensional (T, M) contiguous tensors.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import os
import warnings
from types import ModuleType

import torch

from ._compiling import constant_when_compiled

BACKENDS = ("triton", "numba", "torch")

_INSTALL = {"triton": "pip install triton", "numba": "pip install numba"}

logger = logging.getLogger("snn_single_spike")


# Nothing is imported to find out.
_INSTALLED = {name: importlib.util.find_spec(name) is not None for name in ("triton", "numba")}


def interpreted() -> bool:
    """Whether Triton kernels run in Triton's interpreter, which works on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def explain(device_type: str) -> tuple[str, str]:
    """The backend that ``auto`` takes on a device type, and the reason in words."""
    if device_type == "cuda":
        if _INSTALLED["triton"]:
            return "triton", "a GPU, and triton is installed"
        return "torch", f"a GPU, but triton is not installed: {_INSTALL['triton']}"
    if device_type == "cpu":
        if _INSTALLED["numba"]:
            return "numba", "a CPU, and numba is installed"
        return "torch", f"a CPU, but numba is not installed: {_INSTALL['numba']}"
    return "torch", f"device type {device_type!r} has no kernels of its own"


@functools.cache
def _warn_of_plain_torch(reason: str) -> None:
    """Once in a process: the first layer that runs several times slower than it could."""
    warnings.warn(f"snn_single_spike runs plain torch, several times slower: {reason}", stacklevel=4)


@constant_when_compiled
def select(backend: str, device_type: str) -> str:
    """Resolve the ``backend`` argument for tensors on ``device_type``.

    :raises ValueError: ``backend`` is not one of ``auto``, ``triton``, ``numba``, ``torch``
    :raises RuntimeError: a forced backend cannot run here; the message says what is missing
    """
    if backend == "auto":
        chosen, reason = explain(device_type)
        if chosen == "torch" and device_type in ("cpu", "cuda"):
            _warn_of_plain_torch(reason)
        return chosen
    if backend not in BACKENDS:
        raise ValueError(
            f"backend={backend!r} is not known: use 'auto' or one of {', '.join(BACKENDS)}"
        )
    obstacle = missing(backend, device_type)
    if obstacle:
        raise RuntimeError(f"backend={backend!r} cannot run: {obstacle}")
    return backend


def missing(backend: str, device_type: str) -> str | None:
    """What keeps ``backend`` from running on ``device_type``, or None."""
    if backend == "torch":
        return None
    on_a_gpu = device_type == "cuda" or interpreted()
    if not _INSTALLED[backend] and (backend == "numba" or on_a_gpu):
        return f"{backend} is not installed: {_INSTALL[backend]}"
    if backend == "numba" and device_type != "cpu":
        return f"it runs on CPU tensors, and these are on {device_type!r}; use backend='auto'"
    if backend == "triton" and not on_a_gpu:
        gpu = "move them with .to('cuda')" if torch.cuda.is_available() else "this machine has none"
        return (
            f"it needs tensors on a GPU, and these are on {device_type!r} ({gpu}); "
            "use backend='auto', or set TRITON_INTERPRET=1 before the first import of triton "
            "to run the kernels slowly on the CPU"
        )
    return None


@functools.cache
def load(backend: str, op: str) -> ModuleType:
    """Import the implementation of an operator, once, on its first use."""
    logger.info("using backend %s for %s", backend, op)
    return importlib.import_module(f"{__name__}.{backend}.{op}")
