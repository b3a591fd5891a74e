"""Values inside of a loop over time that runs all its steps at once.

- :class:`Steps`: numbers of Python that differ from step to step, such as the loop variable
- :class:`Scalars`: the same for tensors without dimensions, such as ``spk.sum()``
- :class:`Carried`: a value that the loop carries from one step to the next. A neuron accepts it as
  its state, a sum adds to it, and an :class:`Operation` on it waits for the end of the loop
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...spikes.lazy import LazyTensor
from ..refusals.layers import ConversionError
from .running import KEEP, active_loop, refuse

__all__ = [
    "Carried",
    "Operation",
    "Place",
    "ReadBefore",
    "Scalars",
    "Started",
    "Steps",
    "Sum",
    "add_or_start",
    "first_or",
    "starting",
]

Place = tuple[str, int, int]
"""The path of a neuron, the position of one of its states, and which of its calls in the loop."""

_ELEMENTWISE = {
    *("add", "sub", "mul", "div", "true_divide", "rsub", "pow", "rpow", "maximum", "minimum"),
    *("__add__", "__radd__", "__sub__", "__rsub__", "__mul__", "__rmul__", "__truediv__"),
    *("__rtruediv__", "__pow__", "__rpow__", "__rdiv__", "__div__"),
}
_DEFERRED = {
    *("add", "sub", "rsub", "mul", "div", "true_divide", "maximum", "minimum", "max", "min"),
    *("where", "lerp", "clamp", "clamp_min", "clamp_max", "relu", "neg", "abs", "detach"),
    *("exp", "sigmoid", "tanh", "sum", "mean", "squeeze", "unsqueeze"),
    *("cat", "concat", "concatenate"),
}
"""Names of functions of torch that :class:`Operation` notes: none that has weights, draws random
numbers or changes its argument."""
_OF_ONE = {"exp", "log", "sqrt", "sigmoid", "tanh", "neg", "abs", "detach", "cpu", "float"}


def _with_operators(cls: Any) -> Any:
    """Add the binary operators of Python, which call ``self._apply(operator, other)``."""

    def method(function: Callable[..., Any]) -> Callable[..., Any]:
        return lambda self, other: self._apply(function, other)

    def swapped(function: Callable[..., Any]) -> Callable[..., Any]:
        return method(lambda a, b: function(b, a))

    for name in ("add", "sub", "mul", "mod", "truediv", "floordiv", "pow"):
        setattr(cls, f"__{name}__", method(getattr(operator, name)))
        setattr(cls, f"__r{name}__", swapped(getattr(operator, name)))
    for name in ("lt", "le", "gt", "ge", "eq", "ne"):
        setattr(cls, f"__{name}__", method(getattr(operator, name)))
    return cls


@_with_operators
class Steps:
    """One number for each step, all steps at once."""

    def __init__(self, values: Sequence[Any]) -> None:
        self.values = tuple(values)

    def _apply(self, function: Any, other: Any) -> Any:
        if isinstance(other, Steps):
            return Steps(tuple(map(function, self.values, other.values)))
        if isinstance(other, (int, float)):
            return Steps([function(value, other) for value in self.values])
        if isinstance(other, (Tensor, Scalars)):
            return function(self._scalars(), other)
        return NotImplemented if isinstance(other, Carried) else self._no()

    def _scalars(self) -> Scalars:
        return Scalars(torch.tensor(self.values))

    def _no(self, *_: Any, **__: Any) -> Any:
        refuse(
            "the code uses the number of the time step for other things than an index, x[t], or "
            "arithmetic. A converted model runs all steps at once, so the number has no single "
            f"value. Index with it, or {KEEP}"
        )

    def _only(self) -> Any:
        """The value, where it is the same at every step."""
        return self.values[0] if len(set(self.values)) == 1 else self._no()

    def __bool__(self) -> bool:
        if len(set(map(bool, self.values))) > 1:
            refuse(
                "a branch differs from step to step. A converted model runs all steps at once. A "
                "branch on the step can only append to a list, or add to a sum. Move the first or "
                f"the last step out of the loop, or {KEEP}"
            )
        return bool(self.values[0])

    def __neg__(self) -> Any:
        return Steps([-value for value in self.values])

    def __index__(self) -> int:
        return operator.index(self._only())

    def __int__(self) -> int:
        return int(self._only())

    def __float__(self) -> float:
        return float(self._only())

    def __str__(self) -> str:
        return str(self._only())

    def __format__(self, spec: str) -> str:
        return format(self._only(), spec)

    __hash__ = __and__ = __or__ = _no

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        scalars = [x._scalars() if isinstance(x, Steps) else x for x in args]
        return Scalars.__torch_function__(func, types, scalars, kwargs)


@_with_operators
class Scalars:
    """One tensor without dimensions for each step, all steps at once.

    :param values: (T,)
    """

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def _apply(self, function: Any, other: Any) -> Any:
        loop = active_loop()
        if isinstance(other, (Steps, Scalars)):
            theirs = other._scalars() if isinstance(other, Steps) else other
            return Scalars(function(self.values, theirs.values.to(self.values.device)))
        if isinstance(other, (int, float)) or (isinstance(other, Tensor) and not other.dim()):
            return Scalars(function(self.values, other))
        if isinstance(other, Carried):
            return NotImplemented
        if loop is None or not isinstance(other, (Tensor, LazyTensor)):
            return self._no()
        steps = loop.unfold(other)
        values = self.values.to(steps.device)
        if not values.is_floating_point():
            values = values.to(steps.dtype)
        return loop.fold(function(values.view(-1, *[1] * (steps.dim() - 1)), steps))

    def __neg__(self) -> Any:
        return Scalars(-self.values)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name in _OF_ONE:
            return lambda: Scalars(getattr(self.values, name)())
        return self._no()

    def _no(self, *_: Any, **__: Any) -> Any:
        refuse(
            "the code uses a number of the step (an element of a vector, or a sum over the batch) "
            "for other things than arithmetic, a sum or a record. A converted model runs all steps "
            f"at once, so the number has no single value. Use it after the loop, or {KEEP}"
        )

    __bool__ = __float__ = __int__ = __index__ = __len__ = __iter__ = __getitem__ = _no
    __str__ = __format__ = _no

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        mine = next((x for x in args if isinstance(x, Scalars)), None)
        carried = next((x for x in args if isinstance(x, Carried)), None)
        if carried is not None:
            return Carried.__torch_function__(func, types, args, kwargs)
        if mine is None or kwargs:
            return cls._no(None)  # type: ignore[arg-type]
        if len(args) == 1 and func.__name__ in _OF_ONE:
            return Scalars(func(mine.values))
        if len(args) != 2 or func.__name__ not in _ELEMENTWISE:
            return cls._no(mine)
        other = args[1] if args[0] is mine else args[0]
        first = args[0] is mine
        return mine._apply(func if first else lambda a, b: func(b, a), other)


class ReadBefore(ConversionError):
    """The body reads a name that it assigns only in a branch, and the branch may not run.

    :param name: the number of the loop, and the name
    """

    def __init__(self, message: str, name: tuple[int, str]) -> None:
        super().__init__(message)
        self.name = name


class Carried:
    """A value that a loop carries from step to step, with its value before the first step."""

    def __init__(self, name: str, initial: Any) -> None:
        self.name, self.initial = name, initial
        self.may_start = False  # whether its first value is of the first step, not None
        self.taken: Place | None = None  # where a neuron takes it as its state

    def _no(self, *_: Any, **__: Any) -> Any:
        loop = active_loop()
        try:
            self._refuse()
        except ConversionError as error:
            if loop is not None and type(self) is Carried and loop.may_stay(self):
                raise ReadBefore(str(error), (loop.number, self.name)) from None
            raise

    def _refuse(self) -> None:
        refuse(
            f"the code uses {self.name!r} of the step before. A converted model runs all steps at "
            "once. A value may go from step to step as the unchanged state of a neuron, "
            "spk, mem = lif(x, mem), as a sum, total += x, or through arithmetic that no layer "
            f"reads, trace = 0.9 * trace + spk. Use a neuron for it, or {KEEP}"
        )

    def __add__(self, other: Any) -> Any:
        if isinstance(self.initial, (Tensor, int, float)) and _is_summand(other):
            return Sum(self, [other])
        return self._operation(operator.add, self, other)

    def __sub__(self, other: Any) -> Any:
        if isinstance(self.initial, (Tensor, int, float)) and _is_summand(other):
            return Sum(self, [-other])
        return self._operation(operator.sub, self, other)

    def __mul__(self, other: Any) -> Any:
        return self._operation(operator.mul, self, other)

    def __truediv__(self, other: Any) -> Any:
        return self._operation(operator.truediv, self, other)

    def __rsub__(self, other: Any) -> Any:
        return self._operation(operator.sub, other, self)

    def __rtruediv__(self, other: Any) -> Any:
        return self._operation(operator.truediv, other, self)

    def __neg__(self) -> Any:
        return self._operation(operator.neg, self)

    def __imul__(self, other: Any) -> Any:  # in place, as records may hold the value
        return self._operation(operator.imul, self, other)

    def __itruediv__(self, other: Any) -> Any:
        return self._operation(operator.itruediv, self, other)

    __radd__, __rmul__ = __add__, __mul__
    __mod__ = __pow__ = __lt__ = __le__ = __gt__ = __ge__ = __bool__ = __len__ = __iter__ = _no
    __getitem__ = __float__ = __int__ = __index__ = __matmul__ = __rmatmul__ = _no
    __and__ = __or__ = __invert__ = __format__ = __str__ = _no

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name not in _DEFERRED or not hasattr(Tensor, name):
            self._no()
        return lambda *args, **kwargs: self._operation(getattr(Tensor, name), self, *args, **kwargs)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        leaves = torch.utils._pytree.tree_leaves((args, kwargs))
        mine = next(x for x in leaves if isinstance(x, Carried))
        name = func.__name__
        name = name.strip("_") if name.startswith("__") else name
        if name in ("add", "radd") and len(args) == 2 and not kwargs:
            other = args[1] if args[0] is mine else args[0]
            if not isinstance(other, Carried):
                return mine + other
        if name not in _DEFERRED:
            Carried._no(mine)
        return mine._operation(func, *args, **(kwargs or {}))

    def _operation(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        """Note an operation on numbers and tensors, for the end of the loop."""
        loop = active_loop()
        leaves = torch.utils._pytree.tree_leaves((args, kwargs))
        refused = loop is None or loop.chosen is not None or "out" in kwargs
        if refused or not all(map(_is_operand, leaves)):
            return self._no()
        operation = Operation(self.name, function, args, kwargs)
        loop.operations.append(operation)
        return operation


class Operation(Carried):
    """An operation on a carried value, which waits for the end of the loop.

    See :mod:`~snn_single_spike.conversion.loops.deferred`.
    """

    def __init__(self, name: str, function: Any, args: Any, kwargs: Any) -> None:
        super().__init__(name, None)
        self.function, self.args, self.kwargs = function, args, kwargs
        self.with_gradient = torch.is_grad_enabled()

    def __add__(self, other: Any) -> Any:
        return self._operation(operator.add, self, other)

    def __sub__(self, other: Any) -> Any:
        return self._operation(operator.sub, self, other)

    def __iadd__(self, other: Any) -> Any:
        return self._operation(operator.iadd, self, other)

    def __isub__(self, other: Any) -> Any:
        return self._operation(operator.isub, self, other)

    __radd__ = __add__


class Started(Operation):
    """``first if name is None else rest``. The part ``rest`` may read the value of the name."""


def starting(value: Any) -> Any:
    """The name in ``name = first if name is None else rest``, before its parts are computed."""
    if isinstance(value, Carried) and value.initial is None:
        value.may_start = True
    return value


def first_or(value: Any, first: Any, rest: Any) -> Any:
    """``first if value is None else rest``"""
    loop = active_loop()
    if not (isinstance(value, Carried) and value.may_start) or loop is None:
        return first if value is None else rest
    if not all(map(_is_operand, (first, rest))):
        return value._no()
    started = Started(value.name, None, (value, first, rest), {})
    loop.operations.append(started)
    return started


def add_or_start(total: Any, value: Any) -> Any:
    """``value if total is None else total + value``"""
    if isinstance(total, Sum):
        return total + value
    if isinstance(total, Carried) and total.initial is None:
        return Sum(total, [value]) if _is_summand(value) else total._no()
    return value if total is None else total + value


class Sum(Carried):
    """A carried value to which every step adds."""

    def __init__(self, origin: Carried, added: list[Any]) -> None:
        super().__init__(origin.name, origin.initial)
        self.origin, self.added = origin, added

    def __add__(self, other: Any) -> Any:
        if _is_summand(other):
            return Sum(self.origin, [*self.added, other])
        return self._operation(operator.add, self, other)

    __radd__ = __add__

    def __sub__(self, other: Any) -> Any:
        return self + -other if _is_summand(other) else super().__sub__(other)

    def total(self, loop: Any) -> Any:
        """The value after the last step."""
        out = 0 if self.initial is None else self.initial
        for added in self.added:
            if type(added) in (int, float):
                out = out + added * loop.steps
            elif isinstance(added, Steps):
                out = out + sum(added.values)
            elif isinstance(added, Scalars):
                out = out + added.values.sum()
            else:
                out = out + loop.unfold(added).sum(0)
        return out


def _is_operand(x: Any) -> bool:
    if isinstance(x, Carried) and not isinstance(x, Operation):
        return isinstance(x.initial, (Tensor, int, float)) or x.may_start
    kinds = (Tensor, LazyTensor, Steps, Scalars, Operation, torch.dtype, torch.device)
    return isinstance(x, kinds) or type(x) in (int, float, bool, type(None))


def _is_summand(x: Any) -> bool:
    return isinstance(x, (Tensor, LazyTensor, Steps, Scalars)) or type(x) in (int, float)
