"""Reshapes with the batch size of one step, ``spk.view(batch_size, -1)``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..spikes.lazy import LazyTensor

__all__ = ["AllRows"]

_RESHAPES = {Tensor.view, Tensor.reshape, torch.reshape}


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
        if function in _RESHAPES and isinstance(args[0], (Tensor, LazyTensor)):
            whole = len(args) == 2 and isinstance(args[1], (tuple, list))
            sizes = tuple(args[1]) if whole else tuple(args[1:])
            first = sizes[0] if sizes and type(sizes[0]) is int else None
            if first == self.batch and args[0].dim() and args[0].shape[0] == self.rows:
                args = (args[0], (self.rows, *sizes[1:]))
        return function(*args, **(kwargs or {}))
