"""Which tensors of a loop have a row for each step and sample, where their size cannot say.

A tensor of T * B rows is folded. A vector of the model, such as ``self.decay`` of as many elements
as T * B, is not. If the model has such a size, :class:`Provenance` follows the tensors that are
made from folded ones. Otherwise it costs nothing.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ...spikes.lazy import LazyTensor
from ..watching import Watching

__all__ = ["Provenance"]


class Provenance(Watching):
    """Follows folded tensors, and the tensors made from them, through one loop."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = model
        self._folded: dict[int, Any] = {}  # weak references: tensors end as they do without
        self.follows: bool | None = None
        """Whether a size of the model is that of the folded tensors; None before the first one."""

    def begin(self, folded: Any) -> None:
        """A folded tensor, with which following begins if it is the first one."""
        if self.follows is None:
            rows = folded.shape[0]
            self.follows = any(
                tensor is not None and rows in tensor.shape
                for module in self._model.modules()
                for tensor in (*module._parameters.values(), *module._buffers.values())
            )
            if self.follows:
                self.__enter__()
        if self.follows:
            self._add(folded)

    def end(self) -> None:
        if self.follows:
            self.__exit__(None, None, None)

    def _add(self, value: Any) -> None:
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
        if not self._paused and any(
            x in self for x in tree_leaves((args, kwargs), is_leaf=_is_lazy)
        ):
            for x in tree_leaves(out, is_leaf=_is_lazy):
                self._add(x)
        return out


def _is_lazy(x: Any) -> bool:
    return isinstance(x, LazyTensor)
