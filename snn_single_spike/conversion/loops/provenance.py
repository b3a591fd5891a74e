"""Which tensors of a loop have a row for each step and sample, where their size cannot say.

A tensor of T * B rows is folded. A vector of the model, such as ``self.decay`` of as many elements
as T * B, is not. Where the model has such a size, :class:`Provenance` follows the tensors that are
made from folded ones.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from ...spikes.lazy import LazyTensor

__all__ = ["Provenance", "sizes_of"]


def sizes_of(model: nn.Module) -> set[int]:
    """The sizes of the dimensions of all parameters and buffers."""
    tensors = (*model.parameters(), *model.buffers())
    return {size for tensor in tensors for size in tensor.shape}


class Provenance(TorchFunctionMode):
    """The folded tensors, and those that are made from them."""

    def __init__(self) -> None:
        super().__init__()
        self._folded: dict[int, Any] = {}  # weak references: tensors end as they do without

    def add(self, value: Any) -> None:
        if isinstance(value, (Tensor, LazyTensor)):
            self._folded[id(value)] = weakref.ref(value)

    def __contains__(self, value: Any) -> bool:
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
        if any(x in self for x in tree_leaves((args, kwargs), is_leaf=_is_lazy)):
            for x in tree_leaves(out, is_leaf=_is_lazy):
                self.add(x)
        return out


def _is_lazy(x: Any) -> bool:
    return isinstance(x, LazyTensor)
