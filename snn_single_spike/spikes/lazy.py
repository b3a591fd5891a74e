"""Lazy tensors: objects in place of a tensor, which is computed on its first use.

A torch function or tensor method that is called with a lazy tensor receives the dense tensor.
Functions that support lazy tensors are registered with :func:`implements` and receive them
unchanged.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import FrameType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import handle_torch_function
from torch.utils._pytree import tree_map

__all__ = [
    "LazyMembrane",
    "LazySequence",
    "LazyTensor",
    "MaterializationWarning",
    "implements",
    "materialize",
    "to_dense",
]

# torch calls __torch_function__ of these functions with their options by name.
_DROPOUT = {
    *(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d),
    *(F.alpha_dropout, F.feature_alpha_dropout),
}
_OF_ONE_TENSOR = {"register_hook", "register_post_accumulate_grad_hook", "retain_grad"}
_SUPPORTED: dict[Callable[..., Any], Callable[..., Any]] = {}
C = TypeVar("C", bound=Callable[..., Any])


class MaterializationWarning(UserWarning):
    """
    An operation does not support spike times, and received a dense `(T, B, ...)` tensor.

    Python issues this warning once for each call site. Silence the warning with
    ``warnings.filterwarnings("ignore", category=MaterializationWarning)``, or turn it into an error
    with the action "error".
    """


def implements(*functions: Callable[..., Any]) -> Callable[[C], C]:
    """Register an implementation of torch functions whose first argument is spikes."""

    def register(implementation: C) -> C:
        _SUPPORTED.update(dict.fromkeys(functions, implementation))
        return implementation

    return register


class LazyTensor:
    """A tensor of known shape that is computed on its first use."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    def to_dense(self) -> Tensor:
        """The dense tensor, differentiable."""
        raise NotImplementedError

    @property
    def requires_grad(self) -> bool:
        """Whether a gradient can flow into the tensor."""
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

    def nelement(self) -> int:
        return self.numel()

    def stride(self, dim: int | None = None) -> Any:
        """The strides of the dense tensor, which is contiguous."""
        strides = [1]
        for size in reversed(self.shape[1:]):
            strides.append(strides[-1] * max(size, 1))
        found = tuple(reversed(strides))
        return found if dim is None else found[dim]

    def is_contiguous(self, memory_format: torch.memory_format = torch.contiguous_format) -> bool:
        return memory_format is torch.contiguous_format

    def is_floating_point(self) -> bool:
        return self.dtype.is_floating_point

    def is_complex(self) -> bool:
        return False

    def element_size(self) -> int:
        return self.dtype.itemsize

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize

    def get_device(self) -> int:
        """The number of the GPU; -1 on the CPU."""
        return -1 if self.device.type == "cpu" else self.device.index or 0

    @property
    def is_cpu(self) -> bool:
        return self.device.type == "cpu"

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def is_meta(self) -> bool:
        return self.device.type == "meta"

    layout = torch.strided
    is_sparse = is_sparse_csr = is_mkldnn = is_quantized = is_nested = False

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        return self.materialize("__array__").__array__(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        # Python calls this for names that are not defined here.
        if name.startswith("__") or not hasattr(Tensor, name):
            raise AttributeError(
                f"{type(self).__name__} has no attribute {name!r}. Its dense tensor is .to_dense()"
            )
        if name.endswith("_"):
            raise AttributeError(_in_place(self, name, name.rstrip("_")))
        if name in _OF_ONE_TENSOR:
            raise AttributeError(
                f"{name} is not supported on {type(self).__name__}: its dense tensor is rebuilt on "
                f"every use. Call {name} on x = x.to_dense(), and use x from there on."
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
        if function in _KNOWN and args:
            return _KNOWN[function](args[0])
        if function is torch.zeros_like and args:
            options = {"dtype": args[0].dtype, "device": args[0].device, **(kwargs or {})}
            options.pop("memory_format", None)
            return torch.zeros(args[0].shape, **options)
        name = getattr(function, "__name__", str(function))
        changed = args[0] if args else None
        if name.endswith("_") and not name.startswith("_") and isinstance(changed, LazyTensor):
            raise TypeError(_in_place(changed, name, name.rstrip("_")))
        if kwargs and isinstance(kwargs.get("out"), LazyTensor):
            raise TypeError(_in_place(kwargs["out"], f"{name} with out=", name))

        def dense(x: Any) -> Any:
            return x.materialize(name) if isinstance(x, LazyTensor) else x

        def on_dense(tree: Any) -> Any:
            return tree_map(dense, tree, is_leaf=lambda x: isinstance(x, LazyTensor))

        return function(*on_dense(tuple(args)), **on_dense(dict(kwargs or {})))

    def materialize(self, by: str) -> Tensor:
        """The dense tensor, for an operation that does not support this object."""
        if not torch.compiler.is_compiling():
            _warn(self, by)
        return _seen_by_modes(self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(shape={tuple(self.shape)}, device={str(self.device)!r})"


def to_dense(x: Any) -> Any:
    """The dense tensor of spike times, events or a lazy membrane; other values unchanged."""
    return x.to_dense() if isinstance(x, LazyTensor) else x


def _seen_by_modes(x: LazyTensor) -> Tensor:
    """The dense tensor. A mode of torch sees that it is made from ``x``.

    Operators and methods of ``x`` are no functions of torch, so no mode sees these.
    """
    if not torch.compiler.is_compiling() and torch._C._len_torch_function_stack():
        dense: Tensor = handle_torch_function(_seen_by_modes, (x,), x)
        return dense
    return x.to_dense()


# Functions whose result a lazy tensor has without its dense tensor.
_KNOWN: dict[Callable[..., Any], Callable[[LazyTensor], Any]] = {
    torch.is_floating_point: LazyTensor.is_floating_point,
    torch.is_complex: LazyTensor.is_complex,
    torch.numel: LazyTensor.numel,
}


def _in_place(x: LazyTensor, change: str, instead: str) -> str:
    return (
        f"In-place {change} is not supported on {type(x).__name__}: its dense tensor is rebuilt on "
        f"every use. Use x = x.{instead}(...)."
    )


def materialize(x: Any, by: str) -> Any:
    """The dense tensor of a lazy tensor, for the operation ``by``; other values unchanged."""
    return x.materialize(by) if isinstance(x, LazyTensor) else x


def _on_dense(name: str) -> Callable[..., Any]:
    def method(self: LazyTensor, *args: Any) -> Any:
        return getattr(self.materialize(name), name)(*args)

    return method


# Python looks up operators on the class, and does not call __getattr__ for them.
for _name in (
    *("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "floordiv"),
    *("rfloordiv", "mod", "rmod", "pow", "rpow", "matmul", "rmatmul", "neg", "abs"),
    *("gt", "ge", "lt", "le", "eq", "ne", "getitem", "iter"),
):
    setattr(LazyTensor, f"__{_name}__", _on_dense(f"__{_name}__"))
LazyTensor.__hash__ = object.__hash__  # type: ignore[method-assign]


_LIBRARIES = (__name__.partition(".")[0], "torch", "snntorch")


def _warn(x: LazyTensor, by: str) -> None:
    """Warn at the line of the user's code; name the layer that does not support spikes."""
    layer: nn.Module | None = None
    root: nn.Module | None = None
    user: FrameType | None = None
    frame: FrameType | None = sys._getframe(2)
    while frame is not None:
        module = frame.f_locals.get("self")
        if isinstance(module, nn.Module):
            # Not `or`: a module that defines __len__ may be falsy.
            layer, root = module if layer is None else layer, module
        if user is None and frame.f_globals.get("__name__", "").partition(".")[0] not in _LIBRARIES:
            user = frame
        frame = frame.f_back
    who = by
    if layer is not None and root is not None:
        path = _path(layer, root)
        who = path if by == layer._get_name() else f"{by} in {path}"
    message = (
        f"{who} does not support {type(x).__name__}: a dense (T, B, ...) tensor was made. "
        "If this is intended, call .to_dense(), or silence MaterializationWarning."
    )
    if user is None:
        warnings.warn(message, MaterializationWarning, stacklevel=3)
        return
    warnings.warn_explicit(
        message,
        MaterializationWarning,
        user.f_code.co_filename,
        user.f_lineno,
        user.f_globals.get("__name__", "<unknown>"),
        user.f_globals.setdefault("__warningregistry__", {}),
    )


def _path(layer: nn.Module, root: nn.Module) -> str:
    """The name of a layer in the outermost module that is running."""
    kind = layer._get_name()
    found = next((path for path, module in root.named_modules() if module is layer), "")
    return f"layer {found!r} ({kind})" if found else kind


class LazySequence(LazyTensor):
    """A lazy tensor (T, B, *features), or (T * B, *features) inside a converted model."""

    num_steps: int
    batch: int
    features: torch.Size
    folded: bool = False

    @property
    def shape(self) -> torch.Size:  # type: ignore[override]
        leading = (self.num_steps * self.batch,) if self.folded else (self.num_steps, self.batch)
        return torch.Size((*leading, *self.features))

    def _is_like(self, **changes: Any) -> Any:
        """A copy with other attributes."""
        new = object.__new__(type(self))
        new.__dict__.update(self.__dict__ | changes)
        return new

    def fold(self) -> Any:
        """The same tensor with time folded into the batch, as ``to_dense().flatten(0, 1)``."""
        return self._is_like(folded=True)

    def unfold(self) -> Any:
        """The same tensor with time as the first dimension."""
        return self._is_like(folded=False)

    def _leading(self, dense: Tensor) -> Tensor:
        return dense.flatten(0, 1) if self.folded else dense

    def contiguous(self) -> Any:
        """This object."""
        return self


def versions(values: Iterable[Any]) -> list[int] | None:
    """The version counters of the tensors among ``values``: how often each was changed in place.

    None in a compiled graph, because the compiler keeps the order of in-place changes.
    """
    if torch.compiler.is_compiling():
        return None
    tensors = (x for x in values if isinstance(x, Tensor))
    return [0 if x.is_inference() else x._version for x in tensors]


def changed(values: Iterable[Any], before: list[int] | None) -> bool:
    """Whether a tensor among ``values`` was changed in place after the call of :func:`versions`."""
    now = versions(values)
    return now is not None and before is not None and now != before


class LazyMembrane(LazySequence):
    """
    The membrane `(T, B, *features)` of neurons that ran from spike times, computed on first use.

    :param like: the lazy current of the neurons, with the shape and type of the membrane
    :type like: LazySequence

    :param read: tensors that the computation reads. They must not change before the first use
    :type read: iterable

    :param make: function that computes the membrane
    :type make: Callable
    """

    def __init__(self, like: LazySequence, read: Iterable[Any], make: Callable[[], Tensor]) -> None:
        self.num_steps, self.batch, self.features = like.num_steps, like.batch, like.features
        self.dtype, self.device = like.dtype, like.device
        self._make = make
        self._made: list[Tensor] = []  # shared by folded and unfolded copies
        self._track = torch.is_grad_enabled()
        self._read = [x for x in read if isinstance(x, Tensor)]
        self._versions = versions(self._read)
        learns = like.requires_grad or any(x.requires_grad for x in self._read)
        self._requires_grad = self._track and learns

    @property
    def requires_grad(self) -> bool:
        return self._requires_grad

    def materialize(self, by: str) -> Tensor:
        return _seen_by_modes(self)  # no warning: the user requested the membrane

    def to_dense(self) -> Tensor:
        """
        The membrane as a tensor `(T, B, *features)`, computed once, and differentiable if gradients
        were enabled in the call of the neurons.

        :rtype: torch.Tensor
        :raises RuntimeError: a weight or parameter of the neurons has been changed in place since
            the call
        """
        if not self._made and changed(self._read, self._versions):
            raise RuntimeError(
                "The membrane is computed on its first use, and a weight or parameter of the "
                "neurons has been changed in place since the neurons ran. Use the membrane before "
                "this change, e.g. call mem.to_dense() ahead of optimizer.step()."
            )
        # The first use may be under no_grad, and a later use in a loss.
        if not self._made:
            with torch.inference_mode(False), torch.set_grad_enabled(self._track):
                self._made.append(self._make())
        return self._leading(self._made[0])

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("A lazy membrane cannot be saved. Save mem.to_dense().")


class LastState(LazyTensor):
    """The membrane `(B, *features)` of the last step of a call, detached, computed on first use."""

    def __init__(self, membrane: LazyMembrane) -> None:
        self._membrane = membrane
        self.shape, self.dtype, self.device = (
            membrane.shape[1:],
            membrane.dtype,
            membrane.device,
        )

    def materialize(self, by: str) -> Tensor:
        return _seen_by_modes(self)  # no warning: the user requested the membrane

    def to_dense(self) -> Tensor:
        """
        The state as a tensor `(B, *features)`.

        :rtype: torch.Tensor
        :raises RuntimeError: as :meth:`LazyMembrane.to_dense`
        """
        return self._membrane.to_dense()[-1].detach()

    def detach_(self) -> LastState:
        """The state itself, which has no gradient. `snntorch.Leaky.detach_hidden` calls this."""
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        return torch.zeros, (0,)  # a copy has not run
