"""Sets back what a second run of the user's code changes outside of the model."""

from __future__ import annotations

import collections
import types
from typing import Any

import numpy as np
import torch
from snntorch._neurons.neurons import SpikingNeuron
from torch import Tensor, nn

from ..refusals.snapshot import Snapshot
from ..refusals.state import INTERNAL
from ..source.place import of_torch
from ..source.users_code import is_users_class

__all__ = ["Kept"]

_LARGEST = 1 << 20  # elements of a tensor that is copied


class Kept:
    """The contents of the objects of the user's code, which :meth:`restore` sets back.

    The self-check runs copies of a model. Closures, globals and objects with hooks have no copies,
    so the records in them would grow.
    """

    def __init__(self, model: nn.Module) -> None:
        snapshot = Snapshot(model)
        self._names = [(binding, binding.value()) for binding in snapshot.bindings]
        self._attributes = [
            (module, _attributes(module))
            for module in model.modules()
            if not (of_torch(type(module)) or isinstance(module, SpikingNeuron))
            or module._forward_hooks
        ]
        own = {id(x) for x in (*model.modules(), *model.parameters(), *model.buffers())}
        held = {id(x): x for x in snapshot.objects if id(x) not in own}
        self._contents = [
            (x, before) for x in held.values() if (before := _contents(x)) is not None
        ]

    def restore(self) -> None:
        """Set the contents back."""
        for binding, value in self._names:
            if binding.value() is not value:
                binding.set(value)
        for module, before in self._attributes:
            for name in _attributes(module).keys() - before.keys():
                del vars(module)[name]
            vars(module).update(before)
        for x, before in self._contents:
            _set_contents(x, before)


def _attributes(module: nn.Module) -> dict[str, Any]:
    return {name: x for name, x in vars(module).items() if name not in INTERNAL}


def _contents(x: Any) -> Any:
    if isinstance(x, (list, set, dict, bytearray, collections.deque)):
        return x.copy()
    if isinstance(x, np.ndarray):
        return x.copy() if x.size <= _LARGEST and x.flags.writeable else None
    if isinstance(x, Tensor):
        return x.detach().clone() if type(x) is Tensor and x.numel() <= _LARGEST else None
    code = (type, types.FunctionType, types.ModuleType, nn.Module)
    if isinstance(x, code) or not hasattr(x, "__dict__"):
        return None
    users = isinstance(x, types.SimpleNamespace) or is_users_class(type(x))
    return dict(vars(x)) if users else None


def _set_contents(x: Any, before: Any) -> None:
    if isinstance(x, np.ndarray):
        x[...] = before
    elif isinstance(x, Tensor):
        if not torch.equal(x, before):
            x.data.copy_(before)
    elif isinstance(x, (list, bytearray)):
        x[:] = before
    elif isinstance(x, collections.deque):
        x.clear()
        x.extend(before)
    elif isinstance(x, (set, dict)):
        x.clear()
        x.update(before)
    else:
        vars(x).clear()
        vars(x).update(before)
