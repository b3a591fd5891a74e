"""What stands for a tensor that is computed only if it is asked for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_map

__all__ = ["LazySequence", "LazyTensor", "materialize"]

logger = logging.getLogger("snn_single_spike")

# They hand on their options by name.
_DROPOUT = {
    *(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d),
    *(F.alpha_dropout, F.feature_alpha_dropout),
}

_OF_ONE_TENSOR = {"register_hook", "register_post_accumulate_grad_hook", "retain_grad"}


class LazyTensor:
    """Stands for a tensor of a known shape that is computed only if it is asked for."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    def to_dense(self) -> Tensor:
        """The tensor itself, differentiable as this is."""
        raise NotImplementedError

    @property
    def requires_grad(self) -> bool:
        """Whether a gradient can flow into it."""
        return False

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def dim(self) -> int:
        return len(self.shape)

    def numel(self) -> int:
        return self.shape.numel()

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    def is_floating_point(self) -> bool:
        return self.dtype.is_floating_point

    def __len__(self) -> int:
        return self.shape[0]

    def __getattr__(self, name: str) -> Any:
        # Only what is not defined here comes this way.
        if name.startswith("__") or not hasattr(Tensor, name):
            raise AttributeError(
                f"{type(self).__name__} has no attribute {name!r}: .to_dense() makes it a tensor"
            )
        if name.endswith("_"):
            raise AttributeError(_in_place(self, name, name.rstrip("_")))
        if name in _OF_ONE_TENSOR:
            raise AttributeError(
                f"{name} would be of a tensor that {type(self).__name__} makes anew each time, and "
                "do nothing: use .to_dense(), and go on with that tensor"
            )
        return getattr(self.materialize(f"Tensor.{name}"), name)

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if function in _DROPOUT and kwargs and not (kwargs["training"] and kwargs["p"]):
            return args[0]
        name = getattr(function, "__name__", str(function))
        changed = args[0] if args else None
        if name.endswith("_") and not name.startswith("_") and isinstance(changed, LazyTensor):
            raise TypeError(_in_place(changed, name, name.rstrip("_")))
        if kwargs and isinstance(kwargs.get("out"), LazyTensor):
            raise TypeError(_in_place(kwargs["out"], f"{name} with out=", name))

        def dense(x: Any) -> Any:
            return x.materialize(name) if isinstance(x, LazyTensor) else x

        return function(*tree_map(dense, args), **tree_map(dense, kwargs or {}))

    def materialize(self, by: str) -> Tensor:
        logger.info("%s takes dense tensors: %s made one", by, self)
        return self.to_dense()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(shape={tuple(self.shape)}, device={str(self.device)!r})"


def _in_place(x: LazyTensor, change: str, instead: str) -> str:
    return (
        f"{change} would change a tensor that {type(x).__name__} makes anew each time, and be "
        f"lost: use {instead} and what it returns"
    )


def materialize(x: Any, by: str = "a neuron") -> Any:
    """The tensor that ``x`` stands for, or ``x`` itself if it is none of these."""
    return x.materialize(by) if isinstance(x, LazyTensor) else x


def _on_dense(name: str) -> Callable[..., Any]:
    def method(self: LazyTensor, *args: Any) -> Any:
        return getattr(self.materialize(name), name)(*args)

    return method


# Python looks operators up on the class, past __getattr__.
for _name in (
    *("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "floordiv"),
    *("rfloordiv", "mod", "rmod", "pow", "rpow", "matmul", "rmatmul", "neg", "abs"),
    *("gt", "ge", "lt", "le", "eq", "ne", "getitem", "iter"),
):
    setattr(LazyTensor, f"__{_name}__", _on_dense(f"__{_name}__"))
LazyTensor.__hash__ = object.__hash__  # type: ignore[method-assign]


class LazySequence(LazyTensor):
    """A deferred (T, B, *features), or (T * B, *features) inside a converted model."""

    num_steps: int
    batch: int
    features: torch.Size
    folded: bool

    @property
    def shape(self) -> torch.Size:  # type: ignore[override]
        leading = (self.num_steps * self.batch,) if self.folded else (self.num_steps, self.batch)
        return torch.Size((*leading, *self.features))

    def _is_like(self, **changes: Any) -> Any:
        new = object.__new__(type(self))
        new.__dict__.update(self.__dict__ | changes)
        return new

    def fold(self) -> Any:
        """The same with time folded into the batch, as ``dense().flatten(0, 1)``."""
        return self._is_like(folded=True)

    def unfold(self) -> Any:
        """The same with time as the first dimension."""
        return self._is_like(folded=False)

    def _leading(self, dense: Tensor) -> Tensor:
        return dense.flatten(0, 1) if self.folded else dense

    def contiguous(self) -> Any:
        return self
