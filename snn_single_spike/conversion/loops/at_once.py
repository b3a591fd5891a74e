"""One loop over time, which runs all its steps at once.

Inside the loop a tensor is either the same at every step, `(B, ...)`, or folded, `(T * B, ...)`.
:mod:`~snn_single_spike.conversion.loops.carried` has the values that are no tensors.
"""

from __future__ import annotations

import operator
from contextlib import nullcontext
from typing import Any

import torch
from snntorch._neurons.neurons import SpikingNeuron
from torch import Tensor, nn

from ...spikes.lazy import LazyTensor
from ..refusals.layers import ConversionError, reused_in_loop
from ..refusals.state import INTERNAL, mark_own_state
from .carried import Carried, Operation, Place, Scalars, Steps, Sum
from .deferred import Values, evaluate
from .indexed import norms_by_step
from .provenance import Provenance
from .running import KEEP, Record, active_run, refuse

__all__ = ["Loop"]


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
        self.states_read: list[tuple[Any, str, Carried]] = []  # by the user's code
        self.operations: list[Operation] = []
        self.values = Values()
        self._calls: dict[str, list[tuple[Any, bool]]] = {}  # of neurons: shapes, own states
        self.outputs: dict[Place, Any] = {}
        self._versions: dict[Place, Any] = {}
        self.names = {id(value): name for name, value in local.items()}
        self.lists: dict[int, Any] = {}
        self._records: dict[int, list[tuple[int, Any]]] = {}  # entries of lists, with their steps
        self._sequences: dict[int, Tensor] = {}  # of lists with one entry for each step
        self._read: set[int] = set()  # lists that the loop reads
        self._saved: dict[str, Any] = {}
        self.chosen: tuple[bool, ...] | None = None  # the steps at which a branch runs
        self.time_kept = False  # whether a step has been x[t : t + 1] of (time, batch, ...)
        self.one_step = False  # while layers run that the number of the step has selected
        self._held: list[tuple[Any, str, Any, Place]] = []  # states in other modules
        self._local = local
        own = (value for name, value in vars(owner).items() if name not in INTERNAL)
        for value in (*local.values(), *own):
            self._find_lists(value)
        self._kept = {n: local[n] for n in stored if n in local and (self.number, n) in run.fixed}
        self._versions_kept = {n: _version(value) for n, value in self._kept.items()}
        for name in stored:
            if name in local and name not in self._kept:
                self.entered[name] = self._carry(name, (), local[name])
        for name in written_into:
            if name in local and isinstance(local[name], (list, dict)):
                self._carry(name, (), local[name])

    def may_stay(self, carried: Carried) -> bool:
        """Whether a name that the body reads may have one value at all steps."""
        return (
            isinstance(carried.initial, Tensor)
            and (self.number, carried.name) not in self.run.fixed
        )

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

    def begin(self, holder: dict[Any, Any], key: Any, value: Any) -> Any:
        """An entry of a dict that the first step adds."""
        name = self.names.get(id(holder))
        if name not in self.written_into:
            return value  # a dict of the step itself
        carried = Carried(f"{name}[{key!r}]", value)
        self.slots.append((name, (key,), carried))
        return carried

    def __enter__(self) -> Loop:
        run, time = self.run, self.time
        if run.loop is not None:
            refuse(
                "a loop over time runs inside of another loop over time: use one loop, and call "
                "the layers of both in it"
            )
        run.loop = self
        time.num_steps, time.batch, time.static_input = self.steps, None, False
        time.longest = max(time.longest, self.steps)
        modules = list(run.model.modules())
        if self.steps > 1 and not torch.compiler.is_compiling():
            time.provenance = Provenance(modules)
        for name in self.attributes:
            if name in vars(self.owner):
                self._saved[name] = vars(self.owner)[name]
                setattr(self.owner, name, self._carry(f"self.{name}", (), self._saved[name]))
        if run.expand:
            self._expand()
        self._carry_states_that_are_read(modules)
        self._norms = norms_by_step(self, modules)
        self._norms.__enter__()
        return self

    def _carry_states_that_are_read(self, modules: list[nn.Module]) -> None:
        """Before a neuron has run, its attribute ``mem`` is that of the step before."""
        # A module takes long to say that it has no such attribute.
        neurons = (x for x in modules if isinstance(x, SpikingNeuron))
        for neuron in neurons:
            for name in getattr(neuron, "states_read", ()):
                carried = Carried(f"{neuron.path}.{name}", vars(neuron).get(name))
                self.run.states.append((neuron, name, carried.initial))
                self.slots.append((carried.name, (), carried))
                self.states_read.append((neuron, name, carried))
                vars(neuron)[name] = carried

    def _expand(self) -> None:
        batch = self.time.batch = self.run.batches[self.number]
        for name, value in self._local.items():
            own = (name in self.stored and name not in self._kept) or name in self.written_into
            if own or (self.number, name) in self.run.indexed:
                continue
            if isinstance(value, Tensor) and value.dim() and value.shape[0] == batch:
                self.entered[name] = self.time.fold(value.expand(self.steps, *value.shape))

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        if self.time.provenance is not None:
            self.time.provenance.end()
            self.time.provenance = None
        self._norms.__exit__()
        del self._norms  # refers to this loop, which would hold its lists until gc finds the cycle
        if kind is not None:
            self.run.loop_failed = self.steps, self.time.batch or 0
            for name, value in self._saved.items():
                setattr(self.owner, name, value)
            self._close()

    def _close(self) -> None:
        self.run.batches[self.number :] = [self.time.batch or 0]
        self.run.loop = None
        self.time.num_steps, self.time.folded = 0, []
        # The loop outlives forward, and would hold the tensors of the user's names.
        self._local, self.outputs, self.operations, self.values = {}, {}, [], Values()
        self._records, self._sequences = {}, {}
        self.states_read = []

    def index(self) -> Any:
        """The value of the loop variable."""
        return self._index(self)

    def fold(self, sequence: Any, of: Any = None) -> Any:
        """(T, B, ...) to (T * B, ...). A part ``of`` the model may have one row for all samples."""
        return self.time.fold(self._of_batch(sequence, of))

    def _of_batch(self, sequence: Any, of: Any) -> Any:
        if sequence.dim() < 2:
            refuse(
                f"a step of a tensor of shape {tuple(sequence.shape)} has no batch dimension. "
                "Index sequences with time and batch by the step: x[t] of (time, batch, ...), or "
                "x[:, t] of (batch, time, ...)"
            )
        time = self.time
        if time.batch is None:
            one_row = sequence.shape[1] == 1 and self._is_of_model(of)
            time.batch = self._likely_batch() if one_row else sequence.shape[1]
        if sequence.shape[1] == 1 and time.batch > 1:  # the same for every sample
            sequence = sequence.expand(-1, time.batch, *sequence.shape[2:])
        if time.batch != sequence.shape[1]:
            refuse(
                f"one step of a sequence has {sequence.shape[1]} rows, and other tensors of this "
                f"loop have a batch of {time.batch}: pass sequences of one batch"
            )
        return sequence

    def _likely_batch(self) -> int:
        """The batch of the tensors from before the loop, if they have one; 1 otherwise."""
        tensors = [x for x in self._local.values() if isinstance(x, (Tensor, LazyTensor))]
        # Of a sequence (T, B, ...) the batch is the second dimension.
        sizes = {x.shape[x.shape[0] == self.steps and x.dim() > 2] for x in tensors if x.dim() > 1}
        return sizes.pop() if len(sizes) == 1 else 1

    def fold_indexed(self, sequence: Any, of: Any) -> Any:
        """As :meth:`fold`, of a sequence that the user's code indexes. It may become events."""
        run, time = self.run, self.time
        run.sequences += 1
        path = f"[{run.sequences}]"  # no path of a neuron
        if time.readers is not None:
            with time.readers.paused():
                folded = self.fold(sequence, of)
            time.readers.indexed(path, folded)
            return folded
        sequence = self._of_batch(sequence, of)
        if time.formats is not None:
            sequence = time.formats.sequence(path, sequence)
        return time.fold(sequence)

    def folded_dim(self, value: Any) -> int | None:
        """The dimension of a tensor with a row for each step and sample; None if it has none.

        It is 0, or 1 of ``spk.unsqueeze(0)`` and of ``x[t : t + 1]``.
        """
        rows = self.steps * (self.time.batch or 0)
        shape = tuple(value.shape[:2])
        if not rows or isinstance(value, nn.Parameter):
            return None
        second = shape == (1, rows) or (self.time_kept and shape[1:] == (rows,))
        dim = 0 if shape[:1] == (rows,) else 1 if second else None
        known = self.time.provenance
        return None if known is not None and known.watches and value not in known else dim

    def keeps_time(self, value: Any) -> bool:
        """Whether a folded tensor has a time dimension of one step first, (1, T * B, ...)."""
        return self._keeps_time(self.folded_dim(value))

    def _keeps_time(self, folded_dim: int | None) -> bool:
        # A tensor of one sample, the same at every step, may have this shape by chance.
        return folded_dim == 1 and (self.time_kept or self.time.batch > 1)

    def _is_of_model(self, value: Any) -> bool:
        """Whether a tensor is a parameter or a buffer, and not data."""
        model = self.run.model
        return any(value is x for x in (*model.parameters(), *model.buffers()))

    def to_dense(self, value: Any) -> Any:
        """The dense tensor of a lazy one, which is folded as the lazy one is."""
        if not isinstance(value, LazyTensor):
            return value
        dense, known = value.to_dense(), self.time.provenance
        if known is not None and value in known:
            known.begin(dense)
        return dense

    def unfold(self, value: Any) -> Any:
        """The steps of a value, (T, B, ...)."""
        value = self.to_dense(value)
        folded_dim = self.folded_dim(value)
        if self._keeps_time(folded_dim):
            return value.unflatten(1, (self.steps, -1)).movedim(1, 0)
        rows = value.shape[0] if value.dim() else None
        if rows is not None and self.time.batch is None:
            self.time.batch = rows
        if rows is None or not (rows == self.time.batch or folded_dim == 0):
            if value.dim() > 1 and rows == self.steps * self.time.batch:
                refuse(
                    f"a value of shape {tuple(value.shape)} leaves the loop. Its rows may be "
                    f"{self.steps} steps x {self.time.batch} samples, or entries of the model, "
                    f"which has a parameter or buffer with a size of {rows}, too: no function of "
                    "torch has made the value from a sequence or from spikes (numpy() and the "
                    "like are not followed). Call the model with another batch size"
                )
            refuse(
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
            return list(value.values)
        if isinstance(value, Scalars):
            return list(value.values.unbind(0))
        if isinstance(value, Carried):
            value._no()
        if type(value) in (int, float, bool, str, type(None)):
            return [value] * self.steps
        refuse(f"a {type(value).__name__} cannot leave a loop over time: append tensors")

    def record(self, target: list[Any], value: Any, rows: bool = False) -> None:
        """Append a value at every step, or at the chosen ones."""
        entries = self._records.setdefault(id(target), [])
        chosen = self.chosen or [True] * self.steps
        if isinstance(value, Operation):
            value = value.unsqueeze(0) if rows else value
            self._sequences.pop(id(target), None)
            entries.extend((t, value) for t in range(self.steps) if chosen[t])
            return
        known = self.time.provenance
        with known.paused() if known is not None and known.watches else nullcontext():
            if isinstance(value, (Tensor, LazyTensor)) and not (entries or rows or self.chosen):
                self._sequences[id(target)] = self.unfold(value)
                entries.extend(enumerate(self._sequences[id(target)].unbind(0)))
                return
            self._sequences.pop(id(target), None)
            for step, entry in enumerate(self.each(value)):
                if chosen[step]:
                    entries.append((step, entry.unsqueeze(0) if rows else entry))

    def reads(self, value: Any) -> None:
        """Remember that the loop reads a list."""
        if isinstance(value, list):
            self._read.add(id(value))

    def count_call(
        self, neuron: Any, parameters: tuple[str, ...], given: dict[str, Any], input_: Any
    ) -> int:
        """The number of this call of a neuron in the loop.

        A neuron may have several calls if each has its own states and another shape. They are
        several layers of neurons, which share their parameters. A later loop may call a neuron
        again from zeros, which begins a new sample.

        :raises ConversionError: the calls share their neurons
        """
        calls = self._calls.setdefault(neuron.path, [])
        shape, own = input_.shape[1:], any(state is not None for state in given.values())
        shared = not own or any(shape == other or not others for other, others in calls)
        again = neuron.path in self.time.called
        if again and (neuron.states_read or (shared if calls else not _begins(parameters, given))):
            raise reused_in_loop(neuron.path)
        calls.append((shape, own))
        spans = self.time.spans.setdefault(neuron.path, [])
        if len(calls) == 1:
            spans.append([0, self.steps])
        spans[-1][0] += 1
        return len(calls) - 1

    def take_states(
        self, neuron: Any, call: int, parameters: tuple[str, ...], given: dict[str, Any], shape: Any
    ) -> dict[str, Any]:
        """The states of a neuron before the first step.

        ``call`` counts the places of the loop that call the neuron.
        """
        initial: dict[str, Any] = {}
        for name, state in given.items():
            if state is None:
                continue
            place = neuron.path, parameters.index(name), call
            tensor = isinstance(state, (Tensor, LazyTensor))
            if tensor and self._holds(state, place):
                if not neuron.starts(state) and state.shape == shape:
                    initial[name] = state
                continue
            if not isinstance(state, Carried) or isinstance(state, (Sum, Operation)) or state.taken:
                raise ConversionError(
                    f"neuron {neuron.path!r} is given a state {name!r} that is not its own state "
                    "of the step before, in a loop over time. Carry it from step to step, "
                    "unchanged: spk, mem = lif(x, mem), or leave it out"
                )
            state.taken = place
            value = state.initial
            kept = state.name.startswith("self.") and neuron.starts(value)
            if kept or neuron.starts_from_zeros(value):  # every call starts from zeros
                continue
            if isinstance(value, (Tensor, LazyTensor)) and value.shape == shape:
                initial[name] = value  # snnTorch takes zeros for a state of another shape
        return initial

    def _holds(self, state: Any, place: Place) -> bool:
        """Whether a module keeps a state from step to step; :meth:`end` checks what it keeps."""
        for module in self.run.model.modules():
            for name, value in vars(module).items():
                if value is state and not isinstance(module, SpikingNeuron):
                    self._held.append((module, name, state, place))
                    return True
        return False

    def returned(self, neuron: Any, call: int, parameters: tuple[str, ...], out: Any) -> None:
        """Remember the states that a neuron has returned."""
        if isinstance(out, tuple):
            states = out[len(out) - len(parameters) :]
            for position, state in enumerate(states):
                self.outputs[neuron.path, position, call] = state
                self._versions[neuron.path, position, call] = _version(state)
                if parameters[position] in neuron.states_read:
                    name = parameters[position]
                    self.run.states.append((neuron, name, vars(neuron)[name]))
                    vars(neuron)[name] = state

    def end(self, local: dict[str, Any], needed: tuple[str, ...]) -> dict[str, Any]:
        """Check what the loop carries, and give names their values of the last step."""
        for target, entries in self._records.items():
            if target in self._read:
                refuse(
                    "the loop reads a list to which it appends. A converted model runs all steps "
                    f"at once, so the list is filled after the loop. Read it there, or {KEEP}"
                )
            entries.sort(key=operator.itemgetter(0))  # several entries of a step keep their order
        for name, value in self._kept.items():
            same = local.get(name) is self.entered.get(name, value)
            if not same or _version(value) != self._versions_kept[name]:
                raise self.run.fixed[self.number, name]
        ends = {n: local[n] for n in self.stored if n in local and n not in self._kept}
        held = {**local, **{f"self.{n}": getattr(self.owner, n, None) for n in self.attributes}}
        held |= {carried.name: vars(neuron)[n] for neuron, n, carried in self.states_read}
        fixed = {id(carried) for _, _, carried in self.slots}
        own = {}
        for name, path, carried in self.slots:
            last = _at(held.get(name), path)
            if last is not carried:
                fixed.discard(id(carried))
            if isinstance(last, Sum) and last.origin is carried:
                own[id(last)] = True
            if carried.taken and not self._is_returned(last, carried.taken):
                raise self._changed(carried.taken[0], carried.name)
        for module, name, _, place in self._held:
            state = vars(module).get(name)
            if not self._is_returned(state, place):
                raise self._changed(place[0], name)
            setattr(module, name, last := self._leave(state))
            mark_own_state(last, place[0])
        self._fixed, self._own = fixed, own
        if self.operations:
            after = [(carried, _at(held.get(name), path)) for name, path, carried in self.slots]
            recorded = any(
                isinstance(x, Operation) for entries in self._records.values() for _, x in entries
            )
            self.values = evaluate(self, after, self.operations, only_last=not recorded)
        for target, entries in self._records.items():
            filled = self.lists[target]
            if target in self._sequences and not filled:
                values = [x for _, x in entries]
                self.run.recorded[target] = Record(filled, values, self._sequences[target])
            else:
                values = [
                    self.values[x][step] if isinstance(x, Operation) else x for step, x in entries
                ]
            filled.extend(values)
        for neuron, name, carried in self.states_read:
            state = vars(neuron)[name]
            returned = any(self._is_returned(state, place) for place in self.outputs)
            if neuron.init_hidden and state is not carried and not returned:
                raise self._changed(neuron.path, name)
            vars(neuron)[name] = self._leave(state)
        result = {name: self._leave(value) for name, value in ends.items() if name in needed}
        for name, value in self._local.items():
            if name in self.written_into and isinstance(value, (list, dict)):
                self._leave(value)
            if (name not in self.stored or name in self._kept) and name in self.entered:
                result[name] = value  # it was expanded
        for name in self.attributes:
            if name in vars(self.owner):
                state = vars(self.owner)[name]
                last = self._leave(state)
                for place in self.outputs:  # a membrane that goes back to its neuron
                    if self._is_returned(state, place):
                        mark_own_state(last, place[0])
                setattr(self.owner, name, last)
        self._close()
        return result

    def _is_returned(self, state: Any, place: Place) -> bool:
        """Whether a state is what the neuron has returned, unchanged."""
        same = place in self.outputs and self.outputs[place] is state
        return same and self._versions[place] == _version(state)

    def _changed(self, path: str, name: str) -> ConversionError:
        return ConversionError(
            f"neuron {path!r}: its state {name!r} is not passed on to the next step as the neuron "
            "returned it. A converted model runs all steps at once, so a loop must not change a "
            "state (clamp, detach, noise, a reset of its own): pass on the state that the neuron "
            f"returns, or {KEEP}"
        )

    def _leave(self, value: Any) -> Any:
        if isinstance(value, (Steps, Scalars)):
            return value.values[-1]
        if isinstance(value, Operation):
            return self.values[value][-1]
        if isinstance(value, Sum):
            if id(value) not in self._own:
                value._no()
            return value.total(self)
        if isinstance(value, Carried):
            return value.initial if id(value) in self._fixed else value._no()
        if isinstance(value, (Tensor, LazyTensor)):
            dim = self.folded_dim(value)
            return self.unfold(value)[-1] if dim == 0 or self._keeps_time(dim) else value
        if type(value) is tuple:
            return tuple(map(self._leave, value))
        if isinstance(value, (list, dict)):
            for key, x in list(value.items()) if isinstance(value, dict) else enumerate(value):
                value[key] = self._leave(x)
        return value


def _begins(parameters: tuple[str, ...], given: dict[str, Any]) -> bool:
    """Whether a call passes zeros for every state of a neuron. A neuron keeps a state for None."""
    states = [x.initial if type(x) is Carried else x for x in map(given.get, parameters)]
    return all(isinstance(x, Tensor) and not x.any() for x in states)


def _version(state: Any) -> int:
    if not isinstance(state, Tensor):
        return 0
    try:
        with torch._C.DisableTorchFunction():  # a mode sees properties, too
            return state._version
    except RuntimeError:  # of inference mode
        return 0


def _at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        try:
            value = value[key]
        except (LookupError, TypeError, ConversionError):
            return None
    return value
