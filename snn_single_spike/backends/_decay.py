"""Decays outside of kernels."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["clip_decay"]


def clip_decay(decay: Tensor) -> Tensor:
    """Clip a decay between 0 and 1. Unlike in torch's clamp, a decay of 0 or 1 has a gradient."""
    clipped = decay.detach().clamp(0.0, 1.0)
    return torch.where(decay == clipped, decay, clipped)
