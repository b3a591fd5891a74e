"""Which tensors of a loop have a row for each step and sample, where their size cannot say.

A tensor of T * B rows is folded. A vector of the model, such as ``self.decay`` of as many elements
as T * B, is not. If the model has such a size, :class:`Provenance` follows the tensors that are
made from folded ones. Otherwise it costs nothing.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...spikes.lazy import LazySequence, LazyTensor
from ..watching import Watching

__all__ = ["Provenance"]

_TENSORS = (Tensor, LazyTensor)
_MADE = (*_TENSORS, tuple, list, dict)


class Provenance(Watching):
    """Follows folded tensors, and the tensors made from them, through one loop."""

    def __init__(self, modules: list[nn.Module]) -> None:
        super().__init__()
        self._modules = modules  # of the model
        self._folded: dict[int, Any] = {}  # weak references: tensors end as they do without
        self._begun = self.watches = False  # with the first folded tensor, if its size coincides

    def begin(self, folded: Any) -> None:
        """A folded tensor, with which following begins if it is the first one."""
        if not self._begun:
            rows, self._begun = folded.shape[0], True
            self.watches = any(
                tensor is not None and rows in tensor.shape
                for module in self._modules
                for tensor in (*module._parameters.values(), *module._buffers.values())
            )
            if self.watches:
                self.__enter__()
        if self.watches:
            self._add(folded)

    def end(self) -> None:
        if self.watches:
            self.__exit__(None, None, None)

    def _add(self, value: Any) -> None:
        self._folded[id(value)] = weakref.ref(value)

    def __contains__(self, value: Any) -> bool:
        if isinstance(value, LazySequence) and value.folded:
            return True  # spike times know it, as do others that their own methods make of them
        found = self._folded.get(id(value))
        return found is not None and found() is value

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Any = None,
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        # Most functions return a flag, or a size, which is a tuple.
        if self._paused or not isinstance(out, _MADE) or isinstance(out, torch.Size):
            return out
        if any(x in self for x in _tensors((args, kwargs))):
            for x in _tensors(out):
                self._add(x)
        return out


def _tensors(value: Any) -> Iterator[Any]:
    """The tensors of nested containers. The pytree of torch takes ten times as long."""
    if isinstance(value, _TENSORS):
        yield value
    elif isinstance(value, (tuple, list)):
        for inner in value:
            yield from _tensors(inner)
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _tensors(inner)
