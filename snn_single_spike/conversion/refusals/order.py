"""Signs that an input is (batch, time, ...), where a converted model reads (time, batch, ...)."""

from __future__ import annotations

import warnings

from torch import Tensor, nn

from ..source.place import user_depth

__all__ = ["Order"]

_NAMES = ("num_steps", "time_steps", "timesteps", "n_steps")  # as users name the time steps
_CALLS = 3  # with the same first dimension, before a smaller one between them is a sign
_MANY = 10  # before a smaller one is a sign by itself, as at the end of the first epoch
_ADVICE = (
    "A converted model reads (time, batch, ...). For data with the batch first, convert with "
    "time_dim=1, or pass x.transpose(0, 1)"
)


class Order:
    """Compares the shapes of dense sequences from call to call, and warns once.

    A loader of `(batch, time, ...)` gives one size of the first dimension, a smaller one in the
    last batch, and the first size again. Sequences of several lengths give other patterns.
    """

    def __init__(self) -> None:
        self.warned = False
        self._full = (0, 0)  # the first two dimensions in most calls
        self._small = 0  # the first dimension of a smaller batch
        self._calls = self._ends = 0  # calls of the full size, and smaller ones after them
        self._ended = False  # whether the last call was a smaller one

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
        elif self._ended and (first, second) == self._full:
            self._ended, self._ends = False, self._ends + 1
            if self._calls >= _CALLS or self._ends > 1:
                self._warn(
                    f"the first dimension of the input was {first} in {self._calls} calls, "
                    f"{self._small} in one, and is {first} again, and the second is {second} in "
                    "all. This looks like a smaller last batch"
                )
            self._calls += 1
        elif (first, second) == self._full:
            self._calls += 1
        elif (
            not self._ended
            and second == self._full[1]
            and first < self._full[0]
            and (self._small in (0, first))
        ):
            self._small, self._ended = first, True
            if self._calls >= _MANY:
                self._warn(
                    f"the first dimension of the input was {self._full[0]} in {self._calls} calls, "
                    f"and is {first} now, and the second is {second} in all. This looks like a "
                    "smaller last batch"
                )
        else:  # other sizes: begin again
            self._full, self._small, self._calls = (first, second), 0, 1
            self._ended, self._ends = False, 0

    def _warn(self, sign: str) -> None:
        self.warned = True
        warnings.warn(f"{sign}. {_ADVICE}", stacklevel=user_depth())
