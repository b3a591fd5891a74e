"""Reshapes with the batch size of one step, ``spk.view(batch_size, -1)``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..spikes.lazy import LazyTensor

__all__ = ["AllRows"]

_RESHAPES = {Tensor.view, Tensor.reshape, torch.reshape}
_PACKAGE = __name__.partition(".")[0]


class AllRows(TorchFunctionMode):
    """Reshapes T * B rows to T * B rows where the code names the B rows of one step."""

    def __init__(self, num_steps: int, batch: int) -> None:
        super().__init__()
        self.batch, self.rows = batch, num_steps * batch

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Any = None,
    ) -> Any:
        if function in _RESHAPES and _may_be_folded(args[0]) and not _of_layer(sys._getframe(1)):
            whole = len(args) == 2 and isinstance(args[1], (tuple, list))
            sizes = tuple(args[1]) if whole else tuple(args[1:])
            first = sizes[0] if sizes and type(sizes[0]) is int else None
            if first == self.batch and args[0].dim() and args[0].shape[0] == self.rows:
                args = (args[0], (self.rows, *sizes[1:]))
        return function(*args, **(kwargs or {}))


def _may_be_folded(value: Any) -> bool:
    return isinstance(value, (Tensor, LazyTensor)) and not isinstance(value, nn.Parameter)


def _of_layer(frame: FrameType) -> bool:
    """Whether a layer of this package reshapes, which knows the sizes of its own tensors.

    Spikes reshape where the user's code asks for it.
    """
    while frame.f_code.co_name == "__torch_function__" and frame.f_back is not None:
        frame = frame.f_back  # of another mode
    package, _, inside = frame.f_globals.get("__name__", "").partition(".")
    return package == _PACKAGE and not inside.startswith("spikes")
