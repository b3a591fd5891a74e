"""Every surrogate whose derivative the kernels fuse, as it is declared."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from snntorch import surrogate
from torch import Tensor

from snn_single_spike.backends._surrogate import SURROGATES, Surrogate

VALUES = {"alpha": 3.0, "slope": 4.0, "threshold": 0.5, "beta": 2.0, "B": 0.1}
"""Of the parameters, other than snnTorch's defaults."""


def fused(name: str) -> Callable[[Tensor], Tensor]:
    """As a user makes it."""
    return getattr(surrogate, name)(**{key: VALUES[key] for key in SURROGATES[name]})


@functools.cache
def smooth(name: str) -> Callable[[Tensor], Tensor]:
    """A function with its derivative, by autograd in float64."""
    known = Surrogate(name, *(VALUES[key] for key in SURROGATES[name]))

    def path(u: Tensor) -> Tensor:
        with torch.enable_grad():
            x = u.detach().double().requires_grad_()
            (slope,) = torch.autograd.grad(known(x).sum(), x)
        return slope * u

    return path
