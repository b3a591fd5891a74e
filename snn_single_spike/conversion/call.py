"""One call of a converted model, which runs its author's forward once.

The first call finds out whether the model draws random numbers, and where: see
:mod:`~snn_single_spike.conversion.refusals.chance`. It is repeated if it has to be.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from snntorch._neurons.neurons import SpikingNeuron
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

from ..backends._compiling import constant_when_compiled, outside_of_compiler
from ..modules._base import SingleSpikeNeuron
from ..spikes.lazy import LazyTensor
from .attributes import Decision
from .loops.carried import ReadBefore
from .loops.running import LoopRun
from .one_step import Run
from .refusals.chance import (
    DrawnOnce,
    Draws,
    Generators,
    LoopDraws,
    WrongDraw,
    reject_draws_outside_of_torch,
    states_outside,
)
from .refusals.layers import ConversionError
from .refusals.snapshot import Snapshot, reject_changes
from .source.place import failing_layer

__all__ = ["run_converted", "run_folded", "run_looped", "undo_of"]

_TENSORS = (Tensor, LazyTensor)


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
            "(before the loop write x = x.unsqueeze(1) for a sequence, x = x.unsqueeze(0) for an "
            "input that is the same at every step; and flatten(1) behind convolutions)"
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


def _reject_new_neurons(model: Any, before: Snapshot) -> None:
    for module in before.modules:
        if isinstance(module, SpikingNeuron) and not isinstance(module, SingleSpikeNeuron):
            path = next(path for path, part in model.named_modules() if part is module)
            raise ConversionError(
                f"neuron {path!r} ({type(module).__name__}) was added to the model after its "
                "conversion: revert() the model, change it, and convert() it again"
            )
