"""Runs the body of a loop over time once, for all steps.

:mod:`~snn_single_spike.conversion.loops` rewrites a loop to calls of this module. Inside the loop a
tensor is either the same at every step, `(B, ...)`, or folded, `(T * B, ...)`. Values that the loop
carries from one step to the next are :class:`Carried` objects: a neuron accepts them as its state,
a sum adds to them, and everything else raises.
"""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import Tensor

from ..spikes.lazy import LazyTensor
from .checks import BATCH_NORM, ConversionError
from .place import user_line

__all__ = ["LoopRun", "active_loop", "active_run"]

_KEEP = "take the loop out of forward, so that forward computes one step"
_active = threading.local()


def active_run() -> LoopRun | None:
    """The running call of a model with folded loops, in this thread."""
    return getattr(_active, "run", None)


def active_loop() -> Loop | None:
    """The loop over time that is running in this thread."""
    run = active_run()
    return run.loop if run else None


@dataclass
class LoopRun:
    """One call of a model with folded loops.

    :param time: the time axis that the neurons of the model share
    :param expand: whether tensors from before a loop are repeated at every step. Otherwise the
        layers that use them run once
    """

    model: Any
    time: Any
    expand: bool = False
    batches: list[int] = field(default_factory=list)  # of every loop, found by an earlier run
    indexed: set[tuple[int, str]] = field(default_factory=set)  # names that a step indexes
    loop: Loop | None = None
    number: int = 0
    loop_failed: tuple[int, int] | None = None  # steps and batch of a loop that raised

    def __enter__(self) -> LoopRun:
        self.outer = active_run()
        self.time.called, self.time.folded, self.number = [], [], 0
        _active.run = self
        return self

    def __exit__(self, *exception: object) -> None:
        _active.run = self.outer


def _refuse(reason: str) -> NoReturn:
    run = active_run()
    where = user_line(sys._getframe(2), run.model if run else torch.nn.Module())
    raise ConversionError(f"{where}: {reason}")


class Steps:
    """The number of the step: all steps at once. It can only index."""

    def __init__(self, count: int) -> None:
        self.count = count

    def _no(self, *_: Any, **__: Any) -> Any:
        _refuse(
            "the code computes with the number of the time step. A converted model runs all steps "
            f"at once, so the number can only index: x[t], x[:, t]. Index with it only, or {_KEEP}"
        )

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __mod__ = __rmod__ = _no
    __truediv__ = __rtruediv__ = __floordiv__ = __rfloordiv__ = __pow__ = __rpow__ = _no
    __neg__ = __lt__ = __le__ = __gt__ = __ge__ = __eq__ = __ne__ = __hash__ = _no
    __index__ = __int__ = __float__ = __bool__ = __format__ = __str__ = __and__ = _no

    @classmethod
    def __torch_function__(cls, *_: Any, **__: Any) -> Any:
        cls._no(None)  # type: ignore[arg-type]


class Carried:
    """A value that a loop carries from step to step, with its value before the first step."""

    def __init__(self, name: str, initial: Any) -> None:
        self.name, self.initial = name, initial
        self.total: Any = None
        self.taken: tuple[str, int] | None = None  # the neuron and the state that it is

    def _no(self, *_: Any, **__: Any) -> Any:
        _refuse(
            f"the code uses {self.name!r} of the step before. A converted model runs all steps at "
            "once. A value may go from step to step only as the unchanged state of a neuron, "
            f"spk, mem = lif(x, mem), or as a sum, total += x. Use a neuron for it, or {_KEEP}"
        )

    def __add__(self, other: Any) -> Any:
        if isinstance(self.initial, (Tensor, int, float)) and _is_summand(other):
            return Sum(self, [other])
        return self._no()

    def __sub__(self, other: Any) -> Any:
        if isinstance(self.initial, (Tensor, int, float)) and _is_summand(other):
            return Sum(self, [-other])
        return self._no()

    __radd__ = __add__
    __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __mod__ = __pow__ = _no
    __neg__ = __lt__ = __le__ = __gt__ = __ge__ = __bool__ = __len__ = __iter__ = _no
    __getitem__ = __float__ = __int__ = __index__ = __matmul__ = __rmatmul__ = _no
    __and__ = __or__ = __invert__ = __format__ = __str__ = _no

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        self._no()

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        mine = next((x for x in args if isinstance(x, Carried)), None)
        if func.__name__ in ("add", "__add__", "__radd__") and len(args) == 2 and not kwargs:
            other = args[1] if args[0] is mine else args[0]
            if mine is not None and not isinstance(other, Carried):
                return mine + other
        if mine is None:
            leaves = torch.utils._pytree.tree_leaves((args, kwargs))
            mine = next(x for x in leaves if isinstance(x, Carried))
        Carried._no(mine)


class Sum(Carried):
    """A carried value to which every step adds."""

    def __init__(self, origin: Carried, added: list[Any]) -> None:
        super().__init__(origin.name, origin.initial)
        self.origin, self.added = origin, added

    def __add__(self, other: Any) -> Any:
        return Sum(self.origin, [*self.added, other]) if _is_summand(other) else self._no()

    __radd__ = __add__

    def __sub__(self, other: Any) -> Any:
        return self + -other if _is_summand(other) else self._no()


def _is_summand(x: Any) -> bool:
    return isinstance(x, (Tensor, LazyTensor)) or type(x) in (int, float)


class Loop:
    """One loop over time: all its steps run at once, between ``start`` and ``end``."""

    def __init__(
        self,
        owner: Any,
        steps: int,
        index: Any,
        local: dict[str, Any],
        stored: tuple[str, ...],
        attributes: tuple[str, ...],
        written_into: tuple[str, ...],
    ) -> None:
        run = active_run()
        assert run is not None
        self.run, self.time, self.owner, self.steps, self._index = (
            run,
            run.time,
            owner,
            steps,
            index,
        )
        self.stored, self.attributes, self.written_into = stored, attributes, written_into
        self.number, run.number = run.number, run.number + 1
        self.entered: dict[str, Any] = {}
        self.slots: list[tuple[str, tuple[Any, ...], Carried]] = []
        self.outputs: dict[tuple[str, int], Any] = {}
        self.names = {id(value): name for name, value in local.items()}
        self.lists: dict[int, Any] = {}
        self._saved: dict[str, Any] = {}
        self._local = local
        for value in (*local.values(), *vars(owner).values()):
            self._find_lists(value)
        for name in stored:
            if name in local:
                self.entered[name] = self._carry(name, (), local[name])
        for name in written_into:
            if name in local and isinstance(local[name], (list, dict)):
                self._carry(name, (), local[name])

    def _find_lists(self, value: Any, depth: int = 3) -> None:
        if isinstance(value, list):
            self.lists[id(value)] = value
        if depth and isinstance(value, (list, tuple, dict)):
            for inner in value.values() if isinstance(value, dict) else value:
                self._find_lists(inner, depth - 1)

    def _carry(self, name: str, path: tuple[Any, ...], value: Any) -> Any:
        """A value with :class:`Carried` leaves; lists and dicts change in place."""
        if type(value) is tuple:
            return tuple(self._carry(name, (*path, i), x) for i, x in enumerate(value))
        if isinstance(value, (list, dict)):
            for key, x in value.items() if isinstance(value, dict) else enumerate(value):
                value[key] = self._carry(name, (*path, key), x)
            return value
        if isinstance(value, Carried):
            return value
        carried = Carried(name, value)
        self.slots.append((name, path, carried))
        return carried

    def __enter__(self) -> Loop:
        run, time = self.run, self.time
        if run.loop is not None:
            _refuse("a loop over time runs inside of another loop over time")
        run.loop = self
        time.num_steps, time.batch, time.static_input = self.steps, None, False
        for name in self.attributes:
            if name in vars(self.owner):
                self._saved[name] = vars(self.owner)[name]
                setattr(self.owner, name, self._carry(f"self.{name}", (), self._saved[name]))
        if run.expand:
            self._expand()
        model = run.model
        self._momenta = [
            (module, module.momentum)
            for module in (model.modules() if model.training else ())
            if isinstance(module, BATCH_NORM) and module.momentum is not None
        ]
        for batch_norm, momentum in self._momenta:
            # One update of the running statistics replaces the T updates of a loop.
            batch_norm.momentum = 1 - (1 - momentum) ** self.steps
        return self

    def _expand(self) -> None:
        batch = self.time.batch = self.run.batches[self.number]
        for name, value in self._local.items():
            own = name in self.stored or name in self.written_into
            if own or (self.number, name) in self.run.indexed:
                continue
            if isinstance(value, Tensor) and value.dim() and value.shape[0] == batch:
                self.entered[name] = value.expand(self.steps, *value.shape).flatten(0, 1)

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        for batch_norm, momentum in self._momenta:
            batch_norm.momentum = momentum
        if kind is not None:
            self.run.loop_failed = self.steps, self.time.batch or 0
            for name, value in self._saved.items():
                setattr(self.owner, name, value)
            self._close()

    def _close(self) -> None:
        self.run.batches[self.number :] = [self.time.batch or 0]
        self.run.loop = None
        self.time.num_steps, self.time.folded = 0, []

    def index(self) -> Any:
        """The value of the loop variable."""
        return self._index(self)

    def fold(self, sequence: Any) -> Any:
        """(T, B, ...) to (T * B, ...)."""
        if sequence.dim() < 2:
            _refuse(
                f"a step of a tensor of shape {tuple(sequence.shape)} has no batch dimension. "
                "Index sequences with time and batch by the step: x[t] of (time, batch, ...), or "
                "x[:, t] of (batch, time, ...)"
            )
        time = self.time
        if time.batch is None:
            time.batch = sequence.shape[1]
        if time.batch != sequence.shape[1]:
            _refuse(
                f"one step of a sequence has {sequence.shape[1]} rows, and other tensors of this "
                f"loop have a batch of {time.batch}"
            )
        return time.fold(sequence)

    def fold_whole(self, sequence: Any) -> Any:
        """As :meth:`fold`, for a sequence that the user has made."""
        readers = self.time.readers
        if readers is None:
            return self.fold(sequence)
        with readers.paused():
            folded = self.fold(sequence)
        readers.folded(folded, sequence)
        return folded

    def unfold(self, value: Any) -> Any:
        """The steps of a value, (T, B, ...)."""
        if isinstance(value, LazyTensor):
            value = value.to_dense()
        rows = value.shape[0] if value.dim() else None
        if rows is not None and self.time.batch is None:
            self.time.batch = rows
        if rows is None or rows not in (self.steps * self.time.batch, self.time.batch):
            _refuse(
                f"a value of shape {tuple(value.shape)} leaves the loop, but {self.steps} steps x "
                f"{self.time.batch} samples are expected as its rows: one entry for each sample. "
                "The code reduces over the batch, or reshapes with a fixed batch size. Keep the "
                "batch inside of the loop, and reduce after the loop"
            )
        return self.time.unfold(value)

    def each(self, value: Any) -> list[Any]:
        """One value for each step."""
        if isinstance(value, (Tensor, LazyTensor)):
            return list(self.unfold(value).unbind(0))
        if type(value) in (tuple, list):
            return list(map(type(value), zip(*map(self.each, value), strict=True)))
        if type(value) is dict:
            parts = {key: self.each(x) for key, x in value.items()}
            return [{key: part[t] for key, part in parts.items()} for t in range(self.steps)]
        if isinstance(value, Steps):
            return list(range(self.steps))
        if isinstance(value, Carried):
            value._no()
        if type(value) in (int, float, bool, str, type(None)):
            return [value] * self.steps
        _refuse(f"a {type(value).__name__} cannot leave a loop over time: append tensors")

    def take_states(
        self, neuron: Any, parameters: tuple[str, ...], given: dict[str, Any], shape: Any
    ) -> dict[str, Any]:
        """The states of a neuron before the first step."""
        initial: dict[str, Any] = {}
        for name, state in given.items():
            if state is None:
                continue
            if not isinstance(state, Carried) or isinstance(state, Sum) or state.taken:
                raise ConversionError(
                    f"neuron {neuron.path!r} is given a state {name!r} that is not its own state "
                    "of the step before, in a loop over time. Carry it from step to step, "
                    "unchanged: spk, mem = lif(x, mem), or leave it out"
                )
            state.taken = neuron.path, parameters.index(name)
            value = state.initial
            if neuron.starts_from_zeros(value):
                continue
            if isinstance(value, (Tensor, LazyTensor)) and value.shape == shape:
                initial[name] = value  # snnTorch takes zeros for a state of another shape
        return initial

    def returned(self, neuron: Any, parameters: tuple[str, ...], out: Any) -> None:
        """Remember the states that a neuron has returned."""
        if isinstance(out, tuple):
            states = out[len(out) - len(parameters) :]
            for position, state in enumerate(states):
                self.outputs[neuron.path, position] = state

    def end(self, local: dict[str, Any], needed: tuple[str, ...]) -> dict[str, Any]:
        """Check what the loop carries, and give names their values of the last step."""
        ends = {name: local[name] for name in self.stored if name in local}
        held = {**local, **{f"self.{n}": getattr(self.owner, n, None) for n in self.attributes}}
        fixed = {id(carried) for _, _, carried in self.slots}
        own = {}
        for name, path, carried in self.slots:
            last = _at(held.get(name), path)
            if last is not carried:
                fixed.discard(id(carried))
            if isinstance(last, Sum) and last.origin is carried:
                own[id(last)] = True
            if carried.taken and self.outputs.get(carried.taken) is not last:
                raise ConversionError(
                    f"neuron {carried.taken[0]!r}: its state {carried.name!r} is not passed on to "
                    "the next step as the neuron returned it. A converted model runs all steps at "
                    "once, so a loop must not change a state (clamp, detach, noise, a reset of its "
                    f"own): pass on the state that the neuron returns, or {_KEEP}"
                )
        self._fixed, self._own = fixed, own
        result = {name: self._leave(value) for name, value in ends.items() if name in needed}
        for name, value in self._local.items():
            if name in self.written_into and isinstance(value, (list, dict)):
                self._leave(value)
            if name not in self.stored and name in self.entered:
                result[name] = value  # it was expanded
        for name in self.attributes:
            if name in vars(self.owner):
                setattr(self.owner, name, self._leave(vars(self.owner)[name]))
        self._close()
        return result

    def _leave(self, value: Any) -> Any:
        if isinstance(value, Steps):
            return self.steps - 1
        if isinstance(value, Sum):
            if id(value) not in self._own:
                value._no()
            out = value.initial
            for added in value.added:
                number = type(added) in (int, float)
                out = out + (added * self.steps if number else self.unfold(added).sum(0))
            return out
        if isinstance(value, Carried):
            return value.initial if id(value) in self._fixed else value._no()
        if isinstance(value, (Tensor, LazyTensor)):
            folded = value.dim() and value.shape[0] == self.steps * (self.time.batch or 0)
            return self.unfold(value)[-1] if folded else value
        if type(value) is tuple:
            return tuple(map(self._leave, value))
        if isinstance(value, (list, dict)):
            for key, x in list(value.items()) if isinstance(value, dict) else enumerate(value):
                value[key] = self._leave(x)
        return value


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        try:
            value = value[key]
        except (LookupError, TypeError, ConversionError):
            return None
    return value


class _Indexed:
    """A tensor or a list, indexed by the step."""

    def __init__(self, loop: Loop, value: Any) -> None:
        self.loop, self.value = loop, value

    def __getitem__(self, index: Any) -> Any:
        if not _has_step(index):
            return self.value[index]
        loop, value = self.loop, self.value
        if id(value) in loop.names:
            loop.run.indexed.add((loop.number, loop.names[id(value)]))
        if isinstance(value, (list, tuple)):
            if not all(isinstance(x, Tensor) for x in value):
                _refuse("the step indexes a list with elements other than tensors")
            return loop.fold(torch.stack(tuple(value[: loop.steps])))
        if isinstance(index, Steps) and value.shape[0] == loop.steps:
            return loop.fold_whole(value)
        return loop.fold(self._over_time(value, index))

    def __setitem__(self, index: Any, new: Any) -> None:
        if not _has_step(index):
            self.value[index] = new
            return
        loop = self.loop
        if isinstance(self.value, list):
            self.value[: loop.steps] = loop.each(new)
            return
        part = self._over_time(self.value, index)
        if not isinstance(new, (Tensor, LazyTensor)):
            part[:] = new
            return
        new = loop.unfold(new)
        if new.shape != part.shape:
            _refuse(
                f"a value of shape {tuple(new.shape[1:])} is written to a place of shape "
                f"{tuple(part.shape[1:])}: write x[t] = v with v of the same shape"
            )
        part[:] = new

    def _over_time(self, value: Any, index: Any) -> Any:
        """The part of a tensor that an index selects, with the steps as its first dimension."""
        parts = list(index) if isinstance(index, tuple) else [index]
        at = next(i for i, part in enumerate(parts) if isinstance(part, Steps))
        for part in parts:
            simple = isinstance(part, (Steps, slice, type(None), type(...))) or type(part) is int
            if not simple or (part is not parts[at] and isinstance(part, Steps)):
                _refuse("the step is part of an index that is not understood")
        parts[at] = slice(None)
        whole = value[tuple(parts)]
        kept = [part for part in parts[:at] if not isinstance(part, int)]
        if ... in kept:
            behind = [part for part in parts[at + 1 :] if not isinstance(part, int)]
            hidden = whole.dim() - 1 - len(behind)
        else:
            hidden = len(kept)
        whole = whole.movedim(hidden, 0)
        if whole.shape[0] < self.loop.steps:
            raise IndexError(
                f"the loop has {self.loop.steps} steps, and a tensor of shape "
                f"{tuple(value.shape)} has {whole.shape[0]}"
            )
        return whole[: self.loop.steps]


def _has_step(index: Any) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(part, Steps) for part in parts)


# Calls in the rewritten code


def start(
    owner: Any,
    kind: str,
    iterables: tuple[Any, ...],
    local: dict[str, Any],
    stored: tuple[str, ...],
    attributes: tuple[str, ...],
    written_into: tuple[str, ...],
) -> Loop:
    """Begin a loop over time. ``kind`` is "", "enumerate" or "zip"."""
    if active_run() is None:
        raise ConversionError(
            f"{type(owner).__name__} is a part of a converted model, and was called on its own: "
            "call the model, or convert the part itself"
        )
    counts = [_count(iterable) for iterable in iterables]
    if len(set(counts)) > 1 or counts[0] < 1:
        _refuse(f"the loop over time has {' and '.join(map(str, counts))} steps")

    def index(loop: Loop) -> Any:
        values = [_step_of(loop, iterable) for iterable in iterables]
        if kind == "enumerate":
            return Steps(loop.steps), values[0]
        return tuple(values) if kind == "zip" else values[0]

    return Loop(owner, counts[0], index, local, stored, attributes, written_into)


def _count(iterable: Any) -> int:
    if isinstance(iterable, range):
        if iterable.start != 0 or iterable.step != 1:
            _refuse(
                f"the loop over time is {iterable}. A converted model runs the steps in their "
                "order from 0: range(num_steps). Flip or slice the sequence before the loop"
            )
        return len(iterable)
    if isinstance(iterable, (Tensor, LazyTensor)):
        return iterable.shape[0]
    tensors = isinstance(iterable, (list, tuple)) and all(isinstance(x, Tensor) for x in iterable)
    if tensors:
        return len(iterable)
    _refuse(
        f"the loop over time iterates over a {type(iterable).__name__}. Write "
        "`for step in range(num_steps)`, or iterate over a tensor (time, batch, ...)"
    )


def _step_of(loop: Loop, iterable: Any) -> Any:
    if isinstance(iterable, range):
        return Steps(loop.steps)
    if isinstance(iterable, (list, tuple)):
        iterable = torch.stack(tuple(iterable))
    return loop.fold_whole(iterable)


def source(value: Any) -> Any:
    """An object that a subscript reads, or writes to."""
    loop = active_loop()
    if loop is not None and isinstance(value, (Tensor, LazyTensor, list, tuple)):
        return _Indexed(loop, value)
    return value


def append(target: Any, value: Any) -> None:
    """``target.append(value)``"""
    loop = active_loop()
    if loop is None or not _is_record(loop, target):
        target.append(value)
    else:
        target.extend(loop.each(value))


def iadd(target: Any, value: Any) -> Any:
    """``target += value``"""
    loop = active_loop()
    if loop is None or not _is_record(loop, target):
        if loop is not None and isinstance(target, Tensor):
            return target + value  # a tensor in place would change what the loop carries
        target += value
        return target
    for entries in zip(*map(loop.each, value), strict=True):
        target.extend(entries)
    return target


def _is_record(loop: Loop, target: Any) -> bool:
    if isinstance(target, list):
        return id(target) in loop.lists
    if isinstance(target, (Tensor, LazyTensor, Carried, int, float, str, torch.nn.Module)):
        return False
    _refuse(
        f"a {type(target).__name__} records the steps of a loop. Record them in a list: "
        "spk_rec.append(spk)"
    )


def condition(value: Any) -> Any:
    """The condition of a branch."""
    if active_loop() is not None and isinstance(value, (Tensor, LazyTensor, Carried, Steps)):
        _refuse(
            "a branch depends on the value of a tensor. It may differ from step to step, and a "
            "converted model runs all steps at once. Use torch.where, or take the branch out of "
            "the loop"
        )
    return value
