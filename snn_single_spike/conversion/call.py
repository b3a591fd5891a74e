"""One call of a converted model: folds time into the batch of inputs, unfolds outputs.

A call runs the model's own ``forward`` once. The first call finds out whether the model draws
random numbers, and where: see :mod:`~snn_single_spike.conversion.chance`.
"""

from __future__ import annotations

import itertools
import math
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from snntorch._neurons.neurons import SpikingNeuron
from torch import Tensor
from torch.nn.parameter import is_lazy

from ..modules._base import SingleSpikeNeuron
from ..spikes.lazy import LazyTensor
from .chance import (
    DrawnOnce,
    Draws,
    Generators,
    LoopDraws,
    WrongDraw,
    reject_draws_outside_of_torch,
    states_outside,
)
from .checks import BATCH_NORM, ConversionError, shape_advice
from .order import Order
from .place import failing_layer
from .state import Snapshot, reject_changes
from .steps import LoopRun

__all__ = ["Conversion", "Time", "run_converted", "run_looped"]

_TENSORS = (Tensor, LazyTensor)


class Time(threading.local):
    """The time axis of the sequence that a converted model runs on.

    It belongs to one thread: several threads may run the same model at once, as in a server, and
    DataParallel runs replicas of it in threads.
    """

    def __init__(self) -> None:
        self.num_steps = 0  # 0 outside a forward pass
        self.batch: Any = 0  # None in a loop in forward, before its first tensor
        self.static_input = False  # whether the input is the same at every step
        self.called: list[str] = []  # paths of the neurons that have run
        self.folded: list[tuple[Any, Any]] = []  # while compiling: folded tensors, and their form
        self.readers: Any = None  # spike_format="auto": in the first call, who reads the spikes,
        self.formats: Any = None  # and in later calls, the formats that follow

    def __reduce__(self) -> Any:
        return Time, ()  # a copy is not running

    def fold(self, sequence: Any) -> Any:
        """(T, B, ...) to (T * B, ...)."""
        if isinstance(sequence, LazyTensor):
            return sequence.fold()
        folded = sequence.flatten(0, 1)
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
    check: bool = True
    """Whether the first calls compare the model with its author's loop."""
    auto: bool = False
    """Whether the model chooses the format of spikes: ``spike_format="auto"``."""
    formats: dict[bool, Any] = field(default_factory=dict)
    """The formats that follow from the first calls, by training or not."""

    def __reduce__(self) -> Any:
        decided: tuple[Any, ...] = ({}, set(), Order())
        options = (self.looped, self.check, self.auto)
        return Conversion, (self.time, self.num_steps, self.time_dim, *decided, *options)


@dataclass
class Decision:
    """How a model draws random numbers, found in its first call."""

    draws: bool
    expand: bool
    """Whether a static input is expanded over time before the model, not at the first neuron."""
    loops: Any = None
    """Sizes of the batch in loops of the model's own, and names that their steps index."""
    settings: dict[Any, Any] = field(default_factory=dict)
    """The numbers and flags of the model that the decision holds for."""


def run_converted(model: Any, forward: Any, args: Any, kwargs: Any) -> Any:
    """Call a converted model; ``forward`` is the function of its original class."""
    run = _Run(model, forward, args, kwargs)
    if torch.compiler.is_compiling():
        decision = model._single_spike.decisions.get(model.training)
        return run.run_folded(expand=decision is None or decision.expand)
    _reject_new_neurons(model)
    if not (run.static_input or run.time_dim) and isinstance(run.inputs[0], Tensor):
        model._single_spike.order.check(model, run.inputs[0])
    before = Snapshot(model)
    out = _decided(run, before)
    after = reject_changes(model, before, model._single_spike.records)
    model._single_spike.decisions[model.training].settings = after.settings
    return out


def run_looped(model: Any, forward: Any, args: Any, kwargs: Any) -> Any:
    """Call a model with its own loop over time; ``forward`` runs all steps of the loop at once."""
    if torch.compiler.is_compiling():
        raise ConversionError(
            "torch.compile and torch.export do not support a converted model with a loop over time "
            "inside forward. Take the loop out of forward, and convert again"
        )
    _reject_new_neurons(model)
    conversion = model._single_spike
    before = Snapshot(model)
    decision = conversion.decisions.get(model.training)
    run = LoopRun(model, conversion.time)
    if decision is not None and decision.settings == before.settings:
        run.expand = decision.expand
        if decision.expand:  # the layers before the first neuron find the sizes of the batch
            run.batches, run.indexed = decision.loops
        out = run_folded(run, forward, args, kwargs)
    else:
        out, decision = _decided_loop(run, forward, args, kwargs, before)
        conversion.decisions[model.training] = decision
    after = reject_changes(model, before, conversion.records)
    conversion.decisions[model.training].settings = after.settings
    return out


def _decided_loop(run: LoopRun, forward: Any, args: Any, kwargs: Any, before: Snapshot) -> Any:
    """The output of a first call, and its decision."""
    model = run.model
    inputs = [x for x in (*args, *kwargs.values()) if isinstance(x, _TENSORS)]
    generators = Generators({x.device for x in inputs}, before.generators)
    buffers, outside = _Buffers(model), states_outside()
    draws = LoopDraws(run, expandable=True)
    expand = False
    try:
        with draws:
            out = run_folded(run, forward, args, kwargs)
        expand = draws.wrong
    except StaticMeetsFolded:
        expand = True
    if expand:
        draws.rewind()
        generators.rewind()
        buffers.restore()
        run = LoopRun(model, run.time, True, run.batches, run.indexed)
        draws = LoopDraws(run, expandable=False)
        with draws:
            out = run_folded(run, forward, args, kwargs)
    reject_draws_outside_of_torch(outside)
    return out, Decision(draws.seen, expand, loops=(run.batches, run.indexed))


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
            "x.view(x.size(0), -1) with the size of the same tensor), or adds a tensor of "
            "another size than the batch"
        ) from error


def _decided(run: _Run, before: Snapshot) -> Any:
    """The output of a call, whose random numbers are drawn as a loop over time draws them.

    A call that has drawn nothing so far, and draws now, is repeated under :class:`Draws`.
    """
    model = run.model
    generators = Generators(run.devices, before.generators)
    buffers = _Buffers(model)
    decision = model._single_spike.decisions.get(model.training)
    if decision is not None and decision.settings == before.settings:
        out = run.run_folded(decision.expand)
        if decision.draws or generators.unchanged():
            return out
        generators.rewind()
        buffers.restore()
    outside = states_outside()
    expand, rows = False, (math.prod(run.extent),)
    _check_own_hooks(run)
    draws = Draws(model, rows, expandable=run.static_input)
    try:
        with draws:
            out = run.run_folded(expand)
        # Draws that torch.compile hides from the mode may come before the first neuron.
        hidden = not (draws.seen or draws.initialised or generators.unchanged())
        expand = run.static_input and hidden
    except DrawnOnce:
        expand = True
    if expand:
        draws.rewind()
        generators.rewind()
        buffers.restore()
        draws = Draws(model, rows, expandable=False)
        with draws:
            out = run.run_folded(expand)
    reject_draws_outside_of_torch(outside)
    seen = draws.seen or not (draws.initialised or generators.unchanged())
    if draws.seen:
        _check_sizes(run, expand)
    model._single_spike.decisions[model.training] = Decision(seen, expand)
    return out


def _check_sizes(run: _Run, expand: bool) -> None:
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
    if more is None:
        return
    generators, buffers = Generators(run.devices, ()), _Buffers(run.model)
    draws = Draws(run.model, (math.prod(more.extent),), expandable=False)
    try:
        with torch.no_grad(), draws:
            more.run_folded(expand)
    except WrongDraw:
        raise
    except Exception:
        return  # the model does not accept this batch size
    finally:
        draws.rewind()
        generators.rewind()
        buffers.restore()


def _check_own_hooks(run: _Run) -> None:
    """Reject draws in hooks of the model itself, which run before time is folded.

    torch has run them before this call, so they run again here.
    """
    model = run.model
    rows = (math.prod(run.extent),) if run.static_input else run.extent
    draws = Draws(model, rows[::-1] if run.time_dim else rows, expandable=False)
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


class _Run:
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

    def with_samples(self, samples: int) -> _Run | None:
        """The same call with more samples, which repeat; None for lazy inputs."""
        if any(isinstance(x, LazyTensor) for x in self.inputs):
            return None
        dim = 0 if self.static_input else 1 - self.time_dim

        def longer(x: Any) -> Any:
            if not isinstance(x, Tensor) or x.dim() <= dim or x.shape[dim] != self.extent[1]:
                return x
            x = x if x.layout is torch.strided else x.to_dense()
            return x.index_select(dim, torch.arange(samples, device=x.device) % x.shape[dim])

        kwargs = {name: longer(x) for name, x in self.kwargs.items()}
        return _Run(self.model, self.forward, tuple(map(longer, self.args)), kwargs)

    def run_folded(self, expand: bool) -> Any:
        """Run the model's own forward; ``expand`` repeats a static input at every step."""
        time = self.time
        time.num_steps, time.batch = self.extent
        time.called, time.folded, time.static_input = [], [], self.static_input
        momenta = self._momenta() if self.model.training else []
        for batch_norm, momentum in momenta:
            # One update of the running statistics replaces the T updates of a loop.
            batch_norm.momentum = 1 - (1 - momentum) ** time.num_steps
        enter = self._enter_static if self.static_input else self._enter
        try:
            args = [enter(x, expand) for x in self.args]
            kwargs = {name: enter(x, expand) for name, x in self.kwargs.items()}
            return self._leave(self.forward(self.model, *args, **kwargs))
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
            unfolded = self.time.unfold(out)
            dense = isinstance(unfolded, Tensor)
            return unfolded.transpose(0, 1) if self.time_dim and dense else unfolded
        if isinstance(out, dict):
            return {name: self._leave(value) for name, value in out.items()}
        if isinstance(out, tuple) and hasattr(out, "_fields"):
            return type(out)(*map(self._leave, out))
        if isinstance(out, (list, tuple)):
            return type(out)(map(self._leave, out))
        return out


class _Buffers:
    """The buffers that a call in training can update, as they were before the call."""

    def __init__(self, model: Any) -> None:
        self._saved = [
            (buffer, buffer.clone())
            for module in model.modules()
            if module.training and module._buffers and not isinstance(module, SpikingNeuron)
            for buffer in module._buffers.values()
            if buffer is not None and not is_lazy(buffer)
        ]

    def restore(self) -> None:
        with torch.no_grad():
            for buffer, before in self._saved:
                if not torch.equal(buffer, before):  # a copy is a change of the user's buffers
                    buffer.copy_(before)


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


def _reject_new_neurons(model: Any) -> None:
    for path, module in model.named_modules():
        if isinstance(module, SpikingNeuron) and not isinstance(module, SingleSpikeNeuron):
            raise ConversionError(
                f"neuron {path!r} ({type(module).__name__}) was added to the model after its "
                "conversion: revert() the model, change it, and convert() it again"
            )
