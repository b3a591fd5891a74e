"""The surrogates whose derivative the kernels fuse, as plain data."""

from __future__ import annotations

from typing import NamedTuple

from snntorch import surrogate as snntorch_surrogate
from torch import Tensor
from torch.nn.functional import leaky_relu

SURROGATES: dict[str, tuple[str, ...]] = {
    "atan": ("alpha",),
    "fast_sigmoid": ("slope",),
    "sigmoid": ("slope",),
    "straight_through_estimator": (),
    "triangular": ("threshold",),
    "heaviside": (),
    "spike_rate_escape": ("beta", "slope"),
    "SFS": ("slope", "B"),
    "LSO": ("slope",),
}
"""Factories in :mod:`snntorch.surrogate`, and their parameters in the order (a, b) of the kernels.

``SSO`` draws random numbers and ``custom_surrogate`` holds user code. Autograd differentiates
both.
"""


class Surrogate(NamedTuple):
    """A surrogate of snnTorch as plain data, which can be pickled, compared and fused.

    A call computes the same as the snnTorch closure.
    """

    name: str
    """A key of :data:`SURROGATES`."""
    a: float = 0.0
    b: float = 0.0

    def __call__(self, input_: Tensor) -> Tensor:
        if self.name == "LSO":  # snnTorch's LSO raises
            path = leaky_relu(input_, self.a)
            return (input_ > 0).to(input_) + (path - path.detach())
        values = dict(zip(SURROGATES[self.name], (self.a, self.b), strict=False))
        return getattr(snntorch_surrogate, self.name)(**values)(input_)
