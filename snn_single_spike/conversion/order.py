"""Signs that an input is (batch, time, ...), where a converted model reads (time, batch, ...)."""

from __future__ import annotations

import warnings

from torch import Tensor, nn

from .place import depth_of_user

__all__ = ["Order"]

_NAMES = ("num_steps", "time_steps", "timesteps", "n_steps")  # as users name the time steps
_CALLS = 3  # with the same first dimension, before a smaller one is a sign
_ADVICE = (
    "A converted model reads (time, batch, ...). For data with the batch first, convert with "
    "time_dim=1, or pass x.transpose(0, 1)"
)


class Order:
    """Compares the shapes of dense sequences from call to call, and warns once."""

    def __init__(self) -> None:
        self.warned = False
        self._last = (0, 0)
        self._calls = 0

    def check(self, model: nn.Module, x: Tensor) -> None:
        """Warn if the first two dimensions seem to be batch and time."""
        if self.warned:
            return
        first, second = x.shape[:2]
        named = next(
            (f"{name}={second}" for name in _NAMES if getattr(model, name, None) == second), ""
        )
        if named and first != second:
            self._warn(
                f"the input has shape {tuple(x.shape)}, and the model has {named}, the size of the "
                "second dimension"
            )
        elif self._calls >= _CALLS and first < self._last[0] and second == self._last[1]:
            self._warn(
                f"the first dimension of the input was {self._last[0]} in {self._calls} calls and "
                f"is {first} now, and the second is {second} in all. This looks like a smaller "
                "last batch"
            )
        same = self._last == (first, second)
        self._last, self._calls = (first, second), self._calls + 1 if same else 1

    def _warn(self, sign: str) -> None:
        self.warned = True
        warnings.warn(f"{sign}. {_ADVICE}", stacklevel=depth_of_user())
