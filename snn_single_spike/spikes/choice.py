"""Measured rules: whether a linear layer is faster from spike times than from dense spikes.

The rules hold for the compiled CPU loops, forward and backward, with one thread and with two;
docs/performance.md has the measurement. They say no where nothing was measured.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import backends
from ..backends._compiling import is_traced
from ._base import Spikes

_STATES = (torch.float32, torch.float64)
LEAST_OUTPUTS = 64
LEAST_CURRENTS = 100_000
"""Elements (T * B * outputs) of a current: below, handling spike times takes the time saved."""
LEAST_PRODUCTS = 20_000_000
"""Multiplications (T * B * inputs * outputs) of a linear layer on dense spikes."""
_ENTRIES = 60
_WIDE = 120
_SHARE = 0.1
_SAMPLED = 1 << 15


def is_measured(backend: str, like: Tensor) -> bool:
    """Whether the rules hold for tensors like ``like``."""
    if is_traced() or like.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
        return False
    return like.dtype in _STATES and backends.select(backend, "cpu") == "numba"


def spike_times_pay(shape: Sequence[int], outputs: int) -> bool:
    """Whether spike times pay for a linear layer behind neurons (T, B, *features)."""
    num_steps, batch, *features = shape
    if torch.is_grad_enabled():
        return outputs >= LEAST_OUTPUTS and num_steps * batch * outputs >= LEAST_CURRENTS
    return num_steps * batch * torch.Size(features).numel() * outputs >= LEAST_PRODUCTS


def events_pay(dense: Tensor, outputs: int, backend: str = "auto") -> bool:
    """Whether a dense input is worth its conversion to events for a linear layer.

    At most a tenth of the entries may be spikes, and fewer for a layer of less than 120 outputs,
    in proportion. The share is that of a sample of the entries.
    """
    if not is_measured(backend, dense) or (dense.requires_grad and torch.is_grad_enabled()):
        return False
    few = not dense.numel() or dense.numel() * outputs < LEAST_PRODUCTS
    if few or dense.layout is not torch.strided:
        return False
    flat = dense.detach().reshape(-1)
    sample = flat[:: max(1, flat.numel() // _SAMPLED) | 1]  # an odd step meets all columns
    share = min(outputs, _WIDE) / _WIDE * _SHARE
    return int(sample.count_nonzero()) <= share * sample.numel()


def current_pays(spikes: Spikes, weight: Tensor) -> bool:
    """Whether the current (T, B, O) of a linear layer, as a tensor, is faster from events.

    One event takes at most as long as 60 entries of dense spikes.
    """
    if is_traced() or weight.dtype not in _STATES:
        return False
    return len(spikes.events().times) * _ENTRIES <= spikes.numel()
