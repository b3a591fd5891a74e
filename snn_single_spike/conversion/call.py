"""One call of a converted model: folds time into the batch of inputs, unfolds outputs.

A call runs the model's own ``forward`` once. The first call finds out whether the model draws
random numbers, and where: see :mod:`~snn_single_spike.conversion.refusals.chance`.
"""

from __future__ import annotations

import copy
import itertools
import math
import re
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import torch
from snntorch._neurons.neurons import SpikingNeuron
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

from ..backends._compiling import constant_when_compiled, outside_of_compiler
from ..modules._base import SingleSpikeNeuron
from ..spikes.lazy import LazyTensor, materialize
from .batch import AllRows
from .loops.carried import ReadBefore
from .loops.running import LoopRun
from .refusals.chance import (
    DrawnOnce,
    Draws,
    Generators,
    LoopDraws,
    WrongDraw,
    reject_draws_outside_of_torch,
    states_outside,
)
from .refusals.layers import BATCH_NORM, ConversionError, shape_advice
from .refusals.order import Order
from .refusals.snapshot import Snapshot, reject_changes
from .source.place import failing_layer

__all__ = [
    "Conversion",
    "Decision",
    "Run",
    "Spans",
    "Time",
    "run_converted",
    "run_folded",
    "run_looped",
    "undo_of",
]

_TENSORS = (Tensor, LazyTensor)
Spans = dict[str, list[list[int]]]
"""The loops over time that call each neuron: how often in a step, and in how many steps."""


class Time(threading.local):
    """The time axis of the sequence that a converted model runs on.

    It belongs to one thread: several threads may run the same model at once, as in a server, and
    DataParallel runs replicas of it in threads.
    """

    def __init__(self) -> None:
        self.num_steps = 0  # 0 outside a forward pass
        self.batch: Any = 0  # None in a loop in forward, before its first tensor
        self.static_input = False  # whether the input is the same at every step
        self.longest = 0  # steps of the longest loop of the last call
        self.provenance: Any = None  # in a loop: where folded tensors come from, if sizes coincide
        self.called: list[str] = []  # paths of the neurons that have run
        self.spans: Spans = {}
        self.folded: list[tuple[Any, Any]] = []  # while compiling: folded tensors, and their form
        self.readers: Any = None  # spike_format="auto": in the first call, who reads the spikes,
        self.formats: Any = None  # and in later calls, the formats that follow

    def __reduce__(self) -> Any:
        return Time, ()  # a copy is not running

    def unwatched(self) -> ExitStack:
        """A context in which no mode of this package sees the functions of torch."""
        paused = ExitStack()
        for mode in (self.provenance, self.readers):  # the innermost one first
            if mode is not None and mode.watches:
                paused.enter_context(mode.paused())
        return paused

    def fold(self, sequence: Any) -> Any:
        """(T, B, ...) to (T * B, ...)."""
        folded = sequence.fold() if isinstance(sequence, LazyTensor) else sequence.flatten(0, 1)
        if self.provenance is not None:
            self.provenance.begin(folded)
        if isinstance(sequence, LazyTensor):
            return folded
        if torch.compiler.is_compiling():
            # A view of a view of symbolic shape adds a guard, which torch.export rejects.
            self.folded.append((folded, sequence))
        return folded

    def unfold(self, folded: Any) -> Any:
        """(T * B, ...) to (T, B, ...). A static (B, ...) tensor is repeated at every step."""
        for known, sequence in self.folded:
            if folded is known:
                return sequence
        rows = folded.shape[0] if folded.dim() else None
        if self.batch is None:  # the first tensor of a loop in forward, the same at every step
            self.batch = rows
        if rows == self.num_steps * self.batch:
            if isinstance(folded, LazyTensor):
                return folded.unfold()
            return folded.unflatten(0, (self.num_steps, self.batch))
        if rows == self.batch:
            return folded.expand(self.num_steps, *folded.shape)
        raise ConversionError(
            f"a tensor has shape {tuple(folded.shape)}, but {self.num_steps} steps x {self.batch} "
            f"samples = {self.num_steps * self.batch} rows are expected. {self.advice()}"
        )

    def advice(self) -> str:
        return shape_advice(self.num_steps, self.batch, self.static_input)


@dataclass
class Conversion:
    """The attributes that conversion adds to a model."""

    time: Time
    num_steps: int | None
    time_dim: int = 0
    decisions: dict[bool, Decision] = field(default_factory=dict)  # by training or not
    records: set[Any] = field(default_factory=set)  # attributes that the model only writes
    order: Order = field(default_factory=Order)
    looped: bool = False
    """Whether the model has its own loop over time, which runs all steps at once."""
    check: bool | None = None
    """Whether the first calls compare the model with its author's; None where it has own code."""
    fixed_batch: bool = False
    """Whether a forward reshapes with a batch size that it does not take from a tensor."""
    auto: bool = False
    """Whether the model chooses the format of spikes: ``spike_format="auto"``."""
    keep_loop: Any = None
    """A function that turns the model back if its first calls fail; None if they then raise."""
    formats: dict[Any, Any] = field(default_factory=dict)
    """The formats that follow from the first calls, by what the readers of spikes depend on."""
    comparisons: dict[bool, int] = field(default_factory=dict)  # by training or not
    compared_steps: dict[bool, int] = field(default_factory=dict)
    """Steps of the longest loop of the last comparison."""
    comparing: threading.Lock = field(default_factory=threading.Lock)
    """Held by the thread that compares: the others go on."""

    def __reduce__(self) -> Any:
        decided: tuple[Any, ...] = ({}, set(), Order())
        options = (self.looped, self.check, self.fixed_batch, self.auto, self.keep_loop)
        return Conversion, (self.time, self.num_steps, self.time_dim, *decided, *options)


@dataclass
class Decision:
    """How a model draws random numbers, found in its first call."""

    draws: bool
    expand: bool
    """Whether a static input is expanded over time before the model, not at the first neuron."""
    loops: Any = None
    """Sizes of the batch in loops of the model's own, and names that their steps index."""
    sizes: Any = None
    """The shapes of the inputs that these sizes are for."""
    settings: dict[Any, Any] = field(default_factory=dict)
    """The numbers and flags of the model that the decision holds for."""


def run_converted(model: Any, forward: Any, args: Any, kwargs: Any) -> Any:
    """Call a converted model; ``forward`` is the function of its original class."""
    run = Run(model, forward, args, kwargs)
    if torch.compiler.is_compiling():
        return run.run_folded(_expands_in_graph(model, args, kwargs))
    before = Snapshot(model)
    _reject_new_neurons(model, before)
    if not (run.static_input or run.time_dim) and isinstance(run.inputs[0], Tensor):
        model._single_spike.order.check(model, run.inputs[0])
    out = _decided(run, before)
    after = reject_changes(model, before, model._single_spike.records)
    model._single_spike.decisions[model.training].settings = after.settings
    return out


def _expands_in_graph(model: Any, args: Any, kwargs: Any) -> bool:
    """Whether a compiled graph expands a static input over time, found in a call in eager mode."""
    lazy = any(isinstance(x, LazyTensor) for x in (*args, *kwargs.values()))
    if torch.compiler.is_dynamo_compiling() and not lazy:
        return _first_call(model, *args, **kwargs)
    decision = model._single_spike.decisions.get(model.training)
    return decision is None or decision.expand


@constant_when_compiled
def _first_call(model: Any, *args: Any, **kwargs: Any) -> bool:
    """Call a model in eager mode, on the inputs that it is compiled for, unless it has been called.

    The compiler runs this function while it traces. So compiled models raise as others do.
    """
    conversion = model._single_spike
    decision = conversion.decisions.get(model.training)
    with outside_of_compiler():
        before = Snapshot(model)
        if decision is None or not before.has_settings(decision.settings, conversion.records):
            undo = _Undo(
                model,
                {x.device for x in (*args, *kwargs.values()) if isinstance(x, Tensor)},
                before,
            )
            model.forward(*args, **kwargs)
            undo()
    return conversion.decisions[model.training].expand


def run_looped(model: Any, forward: Any, args: Any, kwargs: Any) -> Any:
    """Call a model with its own loop over time; ``forward`` runs all steps of the loop at once."""
    if torch.compiler.is_compiling():  # torch.export
        decision = model._single_spike.decisions.get(model.training)
        run = LoopRun(model, model._single_spike.time)
        if decision is not None:
            run.fixed = decision.loops[2]
        if decision is not None and decision.expand:
            raise ConversionError(
                "torch.export does not support this model: layers before the first neuron draw "
                "random numbers, or meet tensors of all steps, inside of the loop over time. Take "
                "the loop out of forward, and convert again"
            )
        return run_folded(run, forward, args, kwargs)
    conversion = model._single_spike
    before = Snapshot(model)
    _reject_new_neurons(model, before)
    decision = conversion.decisions.get(model.training)
    run = LoopRun(model, conversion.time)
    known = decision is not None and (
        not decision.expand or decision.sizes == _sizes(args, kwargs)  # of the batch of each loop
    )
    if known and before.has_settings(decision.settings, conversion.records):
        run.expand = decision.expand
        batches, indexed, run.fixed = decision.loops
        if decision.expand:  # the layers before the first neuron find the sizes of the batch
            run.batches, run.indexed = batches, indexed
        out = run_folded(run, forward, args, kwargs)
    else:
        conversion.formats.clear()  # a flag may have changed, and with it who reads spikes
        expanded = decision is not None and decision.expand
        out, decision = _decided_loop(run, forward, args, kwargs, before, expanded)
        conversion.decisions[model.training] = decision
    after = reject_changes(model, before, conversion.records)
    conversion.decisions[model.training].settings = after.settings
    return out


def _decided_loop(
    run: LoopRun, forward: Any, args: Any, kwargs: Any, before: Snapshot, expanded: bool
) -> Any:
    """The output of a first call, and its decision.

    ``expanded`` is whether an input of other sizes had to be expanded. With one sample it need not
    be, and the next call may have more.
    """
    inputs = [x for x in (*args, *kwargs.values()) if isinstance(x, _TENSORS)]
    undo = _Undo(run.model, {x.device for x in inputs}, before)
    runs = [run]

    def observe(expandable: bool) -> Draws:
        return LoopDraws(runs[-1], expandable, undo.generators)

    def attempt(expand: bool) -> Any:
        if expand:
            runs.append(LoopRun(run.model, run.time, True, run.batches, run.indexed, run.fixed))
        try:
            return run_folded(runs[-1], forward, args, kwargs)
        except ReadBefore as error:  # a name that may stay as it is
            if error.name in run.fixed:
                raise
            run.fixed[error.name] = error
        undo()
        runs.append(LoopRun(run.model, run.time, expand, run.batches, run.indexed, run.fixed))
        return attempt(expand)

    out, draws, expand = _observed(observe, attempt, undo, expandable=True, expanded=expanded)
    loops = (runs[-1].batches, runs[-1].indexed, run.fixed)
    return out, Decision(draws.seen, expand, loops, _sizes(args, kwargs))


def _sizes(args: Any, kwargs: Any) -> list[Any]:
    return [getattr(x, "shape", x) for x in tree_leaves((args, kwargs))]


def _observed(
    observe: Callable[[bool], Draws],
    attempt: Callable[[bool], Any],
    undo: _Undo,
    expandable: bool,
    expanded: bool = False,
) -> tuple[Any, Draws, bool]:
    """The output of a call whose draws are observed, and whether it needed an expanded input.

    :param observe: makes the observer; its argument is whether the call may be repeated
    :param attempt: runs the call; its argument is whether to expand a static input over time
    """
    outside = states_outside()
    draws = observe(expandable)
    try:
        with draws:
            out = attempt(False)
        # Draws that torch.compile hides from the mode may come before the first neuron.
        hidden = not (draws.seen or draws.initialised or undo.generators.unchanged())
        expand = expandable and (expanded or draws.wrong or hidden)
    except (DrawnOnce, StaticMeetsFolded):
        expand = True
    if expand:
        draws.rewind()
        undo()
        draws = observe(False)
        with draws:
            out = attempt(True)
    reject_draws_outside_of_torch(outside)
    if draws.seen and undo.generators.unchanged():
        raise WrongDraw(
            "the forward of the model draws random numbers and sets the generator back, as "
            "torch.random.fork_rng does. A loop over time would draw the same numbers at every "
            "step, and a converted model draws others. Draw without it"
        )
    return out, draws, expand


class StaticMeetsFolded(ConversionError):
    """A tensor of one step met a tensor of all steps."""


def run_folded(run: LoopRun, forward: Any, args: Any, kwargs: Any) -> Any:
    """Run the forward of a model with its own loop; messages look for this function's name."""
    try:
        with run:
            return forward(run.model, *args, **kwargs)
    except RuntimeError as error:
        if run.loop_failed is None or not re.search(
            r"\b(shapes?|sizes?|dim(ension)?s?)\b", str(error)
        ):
            raise
        num_steps, batch = run.loop_failed
        raise StaticMeetsFolded(
            f"{failing_layer(run.model, error)}{error}. A converted model runs the {num_steps} "
            f"steps of the loop over time at once, as a batch of {num_steps} x {batch} rows. "
            "Possible causes: forward reshapes with a fixed batch size (write x.flatten(1), or "
            "x.view(x.size(0), -1) with the size of the same tensor), adds a tensor of another "
            "size than the batch, or gives a layer a sample without a batch dimension "
            "(write x.unsqueeze(0))"
        ) from error


def _decided(run: Run, before: Snapshot) -> Any:
    """The output of a call, whose random numbers are drawn as a loop over time draws them.

    A call that has drawn nothing so far, and draws now, is repeated under :class:`Draws`.
    """
    model = run.model
    undo = _Undo(model, run.devices, before)
    decision = model._single_spike.decisions.get(model.training)
    records = model._single_spike.records
    if decision is not None and before.has_settings(decision.settings, records):
        out = run.run_folded(decision.expand)
        if decision.draws or undo.generators.unchanged():
            return out
        undo()
    model._single_spike.formats.clear()  # a flag has changed, which may change who reads spikes
    rows = (math.prod(run.extent),)
    _check_own_hooks(run, undo.generators)

    def observe(expandable: bool) -> Draws:
        return Draws(model, rows, expandable, undo.generators)

    out, draws, expand = _observed(observe, run.run_folded, undo, expandable=run.static_input)
    seen = draws.seen or not (draws.initialised or undo.generators.unchanged())
    if draws.seen:
        _check_sizes(run, expand, before)
    model._single_spike.decisions[model.training] = Decision(seen, expand)
    return out


def _check_sizes(run: Run, expand: bool, before: Snapshot) -> None:
    """Reject a draw whose size is that of the batch by coincidence, as of a weight.

    Only a run with more samples shows the difference, so it is made only if another size is a
    multiple of the rows.
    """
    tensors = [*run.model.parameters(), *run.model.buffers()]
    sizes = {size for x in tensors for size in x.shape}
    sizes.update(size for x in run.inputs for size in x.shape[1 if run.static_input else 2 :])
    num_steps, batch = run.extent

    def by_coincidence(samples: int) -> bool:
        return any(size % (num_steps * samples) == 0 for size in sizes if size)

    if not batch or not by_coincidence(batch):
        return
    more = run.with_samples(next(n for n in itertools.count(batch + 1) if not by_coincidence(n)))
    undo = _Undo(run.model, run.devices, before)
    draws = Draws(run.model, (math.prod(more.extent),), False, undo.generators)
    try:
        with torch.no_grad(), draws:
            more.run_folded(expand)
    except WrongDraw:
        raise
    except Exception:
        return  # the model does not accept this batch size
    finally:
        draws.rewind()
        undo()


def _check_own_hooks(run: Run, generators: Generators) -> None:
    """Reject draws in hooks of the model itself, which run before time is folded.

    torch has run them before this call, so they run again here.
    """
    model = run.model
    rows = (math.prod(run.extent),) if run.static_input else run.extent
    draws = Draws(model, rows[::-1] if run.time_dim else rows, False, generators)
    try:
        for key, hook in model._forward_pre_hooks.items():
            with draws:
                with_kwargs = key in model._forward_pre_hooks_with_kwargs
                hook(model, run.args, *[run.kwargs] * with_kwargs)
    except WrongDraw as error:
        raise WrongDraw(
            f"{error}. Or register the hook on the first layer: a hook of the model runs once, "
            "before the steps"
        ) from None
    finally:
        draws.rewind()


class Run:
    """One call of a converted model: its inputs, and the time axis that they have."""

    def __init__(self, model: Any, forward: Any, args: Any, kwargs: Any) -> None:
        self.model, self.forward, self.args, self.kwargs = model, forward, args, kwargs
        conversion = model._single_spike
        self.time, self.time_dim = conversion.time, conversion.time_dim
        inputs = self.inputs = _input_tensors((*args, *kwargs.values()))
        self.devices = {x.device for x in inputs}
        if conversion.num_steps is None:
            self.extent = _sequence_extent(inputs, self.time_dim)
        else:
            _reject_lazy_inputs(inputs, conversion.num_steps)
            self.extent = conversion.num_steps, inputs[0].shape[0]
        self.static_input = conversion.num_steps is not None

    def with_samples(self, samples: int) -> Run:
        """The same call with another number of samples, which repeat; its inputs are dense."""
        dim = 0 if self.static_input else 1 - self.time_dim

        def other(x: Any) -> Any:
            if isinstance(x, LazyTensor):
                x = x.samples(slice(samples)) if hasattr(x, "samples") else x  # spike times
                return resized(x.to_dense(), 1)
            return resized(x, dim)

        def resized(x: Any, dim: int) -> Any:
            if not isinstance(x, Tensor) or x.dim() <= dim or x.shape == (0,):
                return x
            x = x if x.layout is torch.strided else x.to_dense()
            if not x.shape[dim]:
                return x.new_zeros(*x.shape[:dim], samples, *x.shape[dim + 1 :])
            return x.index_select(dim, torch.arange(samples, device=x.device) % x.shape[dim])

        kwargs = {name: other(x) for name, x in self.kwargs.items()}
        return Run(self.model, self.forward, tuple(map(other, self.args)), kwargs)

    def at_step(self, step: int, given: Any) -> Any:
        """The arguments of one step of a loop over time."""

        def one(x: Any) -> Any:
            if not isinstance(x, Tensor) or self.static_input:
                return x
            return None if x.shape == (0,) else x.select(self.time_dim, step)

        return _mapped(one, given)

    def run_folded(self, expand: bool) -> Any:
        """Run the model's own forward; ``expand`` repeats a static input at every step."""
        time = self.time
        time.num_steps, time.batch = self.extent
        time.longest = time.num_steps
        time.called, time.folded, time.static_input = [], [], self.static_input
        time.spans = {}
        momenta = self._momenta() if self.model.training else []
        for batch_norm, momentum in momenta:
            # One update of the running statistics replaces the T updates of a loop.
            batch_norm.momentum = 1 - (1 - momentum) ** time.num_steps
        enter = self._enter_static if self.static_input else self._enter
        fixed = self.model._single_spike.fixed_batch and not torch.compiler.is_compiling()
        try:
            args = [enter(x, expand) for x in self.args]
            kwargs = {name: enter(x, expand) for name, x in self.kwargs.items()}
            with AllRows(*self.extent) if fixed else nullcontext():
                out = self.forward(self.model, *args, **kwargs)
            return self._leave(out)
        except RuntimeError as error:
            if not re.search(r"\b(shapes?|sizes?|dim(ension)?s?)\b", str(error)):
                raise
            where = failing_layer(self.model, error)
            raise ConversionError(f"{where}{error}. {time.advice()}") from error
        finally:
            time.num_steps, time.folded = 0, []
            for batch_norm, momentum in momenta:
                batch_norm.momentum = momentum

    def _momenta(self) -> list[tuple[Any, float]]:
        """BatchNorm layers with their momentum."""
        return [
            (module, module.momentum)
            for module in self.model.modules()
            if isinstance(module, BATCH_NORM) and module.momentum is not None
        ]

    def _enter_static(self, x: Any, expand: bool) -> Any:
        # Layers before the first neuron run once for all steps, unless the input is expanded.
        if not isinstance(x, Tensor) or not expand:
            return x
        x = x if x.layout is torch.strided else x.to_dense()
        return self.time.fold(x.expand(self.time.num_steps, *x.shape))

    def _enter(self, x: Any, expand: bool) -> Any:
        time = self.time
        if not isinstance(x, _TENSORS):
            return x
        if x.shape == (0,):  # a membrane from reset_mem() before the first call
            return None
        if x.dim() < 2:
            raise self._other_extent(x)
        if isinstance(x, Tensor):
            x = x if x.layout is torch.strided else x.to_dense()
            x = x.transpose(0, 1) if self.time_dim else x
        if tuple(x.shape[:2]) != self.extent:
            raise self._other_extent(x)
        return time.fold(x)

    def _other_extent(self, x: Any) -> ConversionError:
        num_steps, batch = self.extent
        shape = f"an input has shape {tuple(x.shape)}"
        if tuple(x.shape[:2]) == (batch, num_steps):
            return ConversionError(
                f"{shape}, and another one is a sequence of time={num_steps}, batch={batch}: the "
                "batch seems to come first. For (batch, time, ...) convert with time_dim=1, or "
                "pass x.transpose(0, 1)"
            )
        return ConversionError(
            f"{shape}, but every tensor given to a converted model is a sequence, here "
            f"({num_steps}, {batch}, ...): pass None for initial membranes, every sample starts "
            "from zeros"
        )

    def _leave(self, out: Any) -> Any:
        if isinstance(out, _TENSORS):
            num_steps, batch = self.extent
            if out.dim() > 1 and tuple(out.shape[:2]) == (1, num_steps * batch) != (1, 1):
                # A record of one step, torch.stack([spk]).
                record = materialize(out, "torch.stack").unflatten(1, self.extent).movedim(1, 0)
                return record.transpose(0, 1) if self.time_dim else record
            unfolded = self.time.unfold(out)
            dense = isinstance(unfolded, Tensor)
            return unfolded.transpose(0, 1) if self.time_dim and dense else unfolded
        if isinstance(out, dict):
            return {name: self._leave(value) for name, value in out.items()}
        if isinstance(out, tuple) and hasattr(out, "_fields"):
            return type(out)(*map(self._leave, out))
        if isinstance(out, (list, tuple)):
            return type(out)(map(self._leave, out))
        if is_dataclass(out) and not isinstance(out, type):
            new = copy.copy(out)
            for part in fields(out):
                object.__setattr__(new, part.name, self._leave(getattr(out, part.name)))
            return new
        return out


class _Undo:
    """Sets generators and buffers back to the start of a call, so that it can be repeated.

    Only buffers that a call in training can update are copied.
    """

    def __init__(self, model: Any, devices: Iterable[torch.device], before: Snapshot) -> None:
        self.generators = Generators(devices, before.generators)
        self._buffers = [
            (buffer, buffer.clone())
            for module in model.modules()
            if module.training and module._buffers and not isinstance(module, SpikingNeuron)
            for buffer in module._buffers.values()
            if buffer is not None and not is_lazy(buffer)
        ]

    def __call__(self) -> None:
        self.generators.rewind()
        with torch.no_grad():
            for buffer, before in self._buffers:
                if not torch.equal(buffer, before):  # a copy is a change of the user's buffers
                    buffer.copy_(before)


def undo_of(model: Any, args: Any, kwargs: Any) -> Callable[[], None]:
    """Sets generators and buffers back to this moment, before a call that may fail."""
    inputs = [x for x in (*args, *kwargs.values()) if isinstance(x, _TENSORS)]
    return _Undo(model, {x.device for x in inputs}, Snapshot(model))


def _mapped(function: Callable[[Any], Any], given: Any) -> Any:
    if isinstance(given, dict):
        return {name: function(x) for name, x in given.items()}
    return tuple(map(function, given))


def _input_tensors(given: Sequence[Any]) -> list[Tensor | LazyTensor]:
    inputs = [x for x in given if isinstance(x, _TENSORS)]
    if not inputs:
        found = ", ".join(type(x).__name__ for x in given) or "nothing"
        raise TypeError(
            f"a converted model was called with {found}, but it needs a tensor as its input, or "
            "SpikeTimes or SpikeEvents"
        )
    return inputs


def _sequence_extent(inputs: Sequence[Tensor | LazyTensor], time_dim: int) -> tuple[int, int]:
    """T and B of a whole sequence."""
    input_ = inputs[0]
    token_ids = isinstance(input_, Tensor) and not input_.is_floating_point()
    if input_.dim() < (2 if token_ids else 3):
        raise ValueError(
            f"the input has shape {tuple(input_.shape)}, but a converted model takes the "
            "whole sequence, (time, batch, ...): stack the steps. For an input that is the "
            "same at every step, convert with num_steps="
        )
    dense = isinstance(input_, Tensor)
    first = time_dim if dense else 0
    if 0 in input_.shape[first : first + 1]:
        raise ValueError(
            f"the input has shape {tuple(input_.shape)}: no time steps. Pass at least one step"
        )
    return input_.shape[first], input_.shape[1 - first]


def _reject_lazy_inputs(inputs: Sequence[Tensor | LazyTensor], num_steps: int) -> None:
    for x in inputs:
        if isinstance(x, LazyTensor):
            raise ValueError(
                f"the input is {x}, a sequence, but the model was converted with num_steps="
                f"{num_steps} for inputs that are the same at every step: convert it without "
                "num_steps"
            )


def _reject_new_neurons(model: Any, before: Snapshot) -> None:
    for module in before.modules:
        if isinstance(module, SpikingNeuron) and not isinstance(module, SingleSpikeNeuron):
            path = next(path for path, part in model.named_modules() if part is module)
            raise ConversionError(
                f"neuron {path!r} ({type(module).__name__}) was added to the model after its "
                "conversion: revert() the model, change it, and convert() it again"
            )
