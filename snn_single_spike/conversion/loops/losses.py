"""Losses inside of a loop over time, ``loss += criterion(mem, target)``: one number for each step.

A loss of torch reduces over the batch, and its target may have the batch of one step. So it is
computed for one step after the other.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from ...spikes.lazy import LazyTensor
from .carried import Scalars, Steps
from .deferred import value_at
from .running import active_loop

__all__ = ["by_step"]

_ENDS = ("_loss", "cross_entropy", "_with_logits")
_FUNCTIONS = {function for name, function in vars(nn.functional).items() if name.endswith(_ENDS)}
_VALUES = (LazyTensor, Steps, Scalars)


def by_step(function: Any) -> Any:
    """A function or module that a loop calls; a loss is computed step by step."""
    loop = active_loop()
    if loop is None or loop.steps == 1 or not _is_loss(function):
        return function

    def loss(*args: Any, **kwargs: Any) -> Any:
        return _of_all_steps(loop, function, args, kwargs)

    return loss


def _is_loss(function: Any) -> bool:
    plain = isinstance(function, (types.FunctionType, types.BuiltinFunctionType))
    return isinstance(function, nn.modules.loss._Loss) or (plain and function in _FUNCTIONS)


def _of_all_steps(loop: Any, loss: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    def is_value(x: Any) -> bool:
        return isinstance(x, _VALUES)

    def differs(x: Any) -> bool:
        return is_value(x) or (isinstance(x, Tensor) and loop.folded_dim(x) is not None)

    given = (args, kwargs)
    if not any(map(differs, tree_leaves(given, is_leaf=is_value))):
        return loss(*args, **kwargs)
    found = []
    for step in range(loop.steps):
        one = tree_map(lambda x, step=step: value_at(loop, x, step), given, is_leaf=is_value)
        found.append(loss(*one[0], **one[1]))
    if all(x.dim() == 0 for x in found):
        return Scalars(torch.stack(found))
    return loop.fold(torch.stack(found))
