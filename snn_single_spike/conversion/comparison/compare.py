"""Compares a converted model with the author's, step by step, on a few samples.

The first call of a converted model runs the author's forward once more, with its loop over time, or
in a loop over time if it computes one step. snnTorch's neurons are held to one spike and one reset,
or to the refractory period of the model.
Both models are copies in float64, and draw the same random numbers. The outputs of all layers are
compared, and in training the gradients.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from snntorch._neurons.neurons import SpikingNeuron
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves, tree_map

from ...backends._compiling import is_traced
from ...spikes.lazy import LazyTensor
from ..attributes import Decision
from ..call import run_folded
from ..loops.running import LoopRun
from ..one_step import Run
from ..refusals.layers import ConversionError
from ..refusals.state import INTERNAL
from ..source.place import failing_layer, of_torch, user_depth
from ..source.users_code import is_users_code
from ..time_axis import Spans, Time
from .kept import Kept
from .reference import InDouble, Layers, double_copy, make_author_s
from .same_draws import FoldedDraws, Place, StepDraws

__all__ = ["SelfCheck", "foreign_error", "warn_unless_compared"]

_SAMPLES = 2
_TOLERANCE = 1e-4
_READS_STATE = (
    "The code reads a state of a neuron, such as its mem, which a converted model has for the last "
    "step only. Use the membrane that the neuron returns: make it with output=True"
)
_MOST = 4  # comparisons of a model in one mode; each changed flag causes one more


class SelfCheck:
    """The comparison of one call, if it needs one.

    :param author: the forward of the author's class
    :param folded: the forward that runs all steps at once
    """

    def __init__(self, model: Any, author: Any, folded: Any) -> None:
        self.model, self.author, self.folded = model, author, folded
        self.conversion = model._single_spike
        self._decision = self.conversion.decisions.get(model.training)
        self._before: Any = None  # a copy of the model before its first call
        if self._decision is None and self._is_wanted() and not _changes_layers(model):
            self._before = _copy(model)

    def after(self, args: Any, kwargs: Any) -> None:
        """Compare, if the call was the first in its mode, or the first since a flag has changed.

        :raises ConversionError: the converted model computes something else
        """
        conversion, mode = self.conversion, self.model.training
        decision = conversion.decisions.get(mode)
        made, steps = conversion.comparisons.get(mode, 0), conversion.time.longest
        # One step shows nothing of how steps depend on one another.
        longer = conversion.compared_steps.get(mode) == 1 and steps > 1
        known = decision is self._decision and not longer
        if known or made >= _MOST or not self._is_wanted():
            return
        if not conversion.comparing.acquire(blocking=False):
            return
        try:
            conversion.comparisons[mode] = made + 1
            base = self._before
            if base is None or _names(base) != _names(self.model):  # layers were made in the call
                base = _copy(self.model)
            self._compare(base, decision, args, kwargs)
            conversion.compared_steps[mode] = steps
        except BaseException:
            del conversion.decisions[mode]  # the next call compares again
            conversion.comparisons[mode] = made
            raise
        finally:
            conversion.comparing.release()

    def _is_wanted(self) -> bool:
        check, model = self.conversion.check, self.model
        if check is None:
            check = self.conversion.looped or _has_own_code(model)
        functorch = torch._C._are_functorch_transforms_active()
        return check and not (is_traced() or functorch or getattr(model, "_is_replica", False))

    def _compare(self, base: Any, decision: Decision, args: Any, kwargs: Any) -> None:
        kept = Kept(self.model)
        try:
            # A checkpoint around the model counts the tensors that autograd saves.
            with warnings.catch_warnings(), saved_tensors_hooks(_itself, _itself):
                warnings.simplefilter("ignore")
                if isinstance(base, Exception):
                    reason, difference = f"the model cannot be copied: {base}", ""
                else:
                    kind = _LoopInside if self.conversion.looped else _LoopOutside
                    runs = kind(base, self.author, self.folded, decision, args, kwargs)
                    reason, difference = _compare(runs, kept)
        finally:
            kept.restore()
        if reason:
            warnings.warn(
                f"the model was not compared with a loop over time: {reason}. Compare them "
                "yourself, or convert with check=False",
                stacklevel=user_depth(),
            )
        elif difference:
            raise ConversionError(difference)


def warn_unless_compared(model: Any) -> None:
    """Warn of an export of a model that has not been compared: an export computes no values."""
    conversion = model._single_spike
    if conversion.check is False or model.training in conversion.decisions:
        return
    if conversion.check or _has_own_code(model):
        warnings.warn(
            "the converted model is exported before its first call, which compares it with a loop "
            "over time. Call it once on an input, in the mode that you export",
            stacklevel=user_depth(),
        )


def foreign_error(model: Any, author: Any, args: Any, kwargs: Any, error: Exception) -> Exception:
    """The error to raise where a model with its own loop raises: the same if the loop raises."""
    kept = Kept(model)
    try:
        with warnings.catch_warnings(), torch.no_grad(), InDouble():
            warnings.simplefilter("ignore")
            new = double_copy(model)
            make_author_s(new, one_step=False)
            given = _double((args, kwargs))
            author(new, *given[0], **given[1])
    except Exception:
        return error
    finally:
        kept.restore()
    return ConversionError(
        f"{failing_layer(model, error)}the converted model raises {type(error).__name__}: {error}. "
        "The author's loop runs on this input. It does something that cannot run for all steps at "
        f"once. {_LoopInside.advice}"
    )


def _has_own_code(model: nn.Module) -> bool:
    """Whether a model has a forward or a hook that is not torch's."""
    return any(
        not (
            isinstance(module, SpikingNeuron) or of_torch(getattr(type(module), "forward", module))
        )
        or any(
            is_users_code(hook) and not of_torch(hook)
            for hook in (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
            if hasattr(hook, "__module__")
        )
        for module in model.modules()
    )


def _changes_layers(model: nn.Module) -> bool:
    """Whether the first call makes weights."""
    return any(map(is_lazy, (*model.parameters(), *model.buffers())))


def _itself(x: Tensor) -> Tensor:
    return x


def _names(model: Any) -> list[str]:
    return [path for path, _ in model.named_modules()] if isinstance(model, nn.Module) else []


def _copy(model: Any) -> Any:
    """A copy in float64, or the error why there is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return double_copy(model)
    except Exception as error:
        return error


@dataclasses.dataclass
class _Result:
    """Outputs, gradients by parameter, and outputs of layers."""

    outputs: list[tuple[str, Any]]
    gradients: dict[str, Any]
    layers: Layers
    changed: list[str]  # attributes whose values a loop over time has changed
    model: Any = None


class _Runs:
    """The two ways to run a model, on copies."""

    advice = ""

    def __init__(
        self, base: Any, author: Any, folded: Any, decision: Decision, args: Any, kwargs: Any
    ) -> None:
        self.base, self.author, self.folded, self.decision = base, author, folded, decision
        self.given = args, kwargs
        self.gradients = base.training and torch.is_grad_enabled()

    def inputs(self) -> Iterator[tuple[Any, Any]]:
        """Arguments of a few samples, and then of the whole batch."""
        raise NotImplementedError

    def loop(self, new: Any, args: Any, kwargs: Any) -> Any:
        """Run the author's forward, for all steps."""
        raise NotImplementedError

    def fold(self, new: Any, args: Any, kwargs: Any) -> Any:
        """Run all steps at once."""
        raise NotImplementedError

    def place(self, new: Any) -> Place:
        """Where a model is that runs all steps at once."""
        time = new._single_spike.time
        return 0, time.num_steps, time.batch or 0

    def of_folded(self, given: Any, noise: bool) -> tuple[_Result, list[Place]]:
        """The results of all steps at once, and where random numbers were drawn."""
        new = double_copy(self.base, noise)

        def place() -> Place:
            return self.place(new)

        layers = Layers(new, place)
        with FoldedDraws(new, place) as draws:
            result = self._results(new, self.fold, given, layers)
        return dataclasses.replace(result, model=new), draws.order

    def second_call(self, first: _Result, given: Any) -> str:
        """How a second call on the same input differs; "" if it does not."""
        new = first.model
        try:
            with torch.no_grad(), InDouble(), FoldedDraws(new, lambda: self.place(new)):
                again = list(_leaves(self.fold(new, *given)))
        except Exception as error:
            return f"a second call on the same input raises: {error}"
        for (name, one), (_, two) in zip(first.outputs, again, strict=True):
            if isinstance(one, Tensor) and isinstance(two, Tensor) and _gap(one, two) is not None:
                return (
                    f"{_output(name)} differs in a second call on the same input: the model keeps "
                    "a state from call to call"
                )
        return ""

    def of_loop(self, given: Any, order: list[Place], spans: Spans, noise: bool) -> _Result:
        """The results of the author's model, which makes these calls of neurons."""
        new = double_copy(self.base, noise)
        make_author_s(new, isinstance(self, _LoopOutside), spans)
        layers, before = Layers(new, lambda: (0, 0, 0)), _contents(new)
        with StepDraws(order) as draws:
            result = self._results(new, self.loop, given, layers)
        if draws.difference:
            raise _Differs(draws.difference)
        after = _contents(new)
        changed = (name for name, x in after.items() if not _is_same(before.get(name), x))
        return dataclasses.replace(result, changed=list(changed))

    def _results(self, new: Any, call: Callable[..., Any], given: Any, layers: Layers) -> _Result:
        with InDouble():
            outputs = list(_leaves(call(new, *given)))
        layers.running = False
        loss: Any = 0
        for _, x in outputs:
            if isinstance(x, Tensor) and x.requires_grad and x.is_floating_point():
                weight = torch.arange(x.numel(), device=x.device, dtype=x.dtype).add(1).cos()
                loss = loss + (x * weight.view(x.shape)).sum()
        gradients: dict[str, Any] = {}
        named = [(name, p) for name, p in new.named_parameters() if p.requires_grad]
        if isinstance(loss, Tensor) and self.gradients and named:
            found = torch.autograd.grad(loss, [p for _, p in named], allow_unused=True)
            gradients = dict(zip((name for name, _ in named), found, strict=True))
        return _Result(outputs, gradients, layers, [])


class _LoopInside(_Runs):
    """A model with its own loop over time."""

    advice = (
        "Take the loop out of forward, so that forward computes one step and returns the spikes "
        "and the membrane of this step, and convert again"
    )

    def inputs(self) -> Iterator[tuple[Any, Any]]:
        given, batch = self.given, max(self.decision.loops[0], default=0)
        tensors = [x for x in tree_leaves(given) if isinstance(x, (Tensor, LazyTensor))]
        dims = {id(x): [d for d, size in enumerate(x.shape) if size == batch] for x in tensors}

        def few(x: Any) -> Any:
            if not dims.get(id(x)):
                return x
            if hasattr(x, "samples"):  # spike times
                return x.samples(slice(_SAMPLES))
            return x.narrow(dims[id(x)][0], 0, _SAMPLES)

        if batch > _SAMPLES and all(len(found) < 2 for found in dims.values()):
            yield _double(tree_map(few, given))
        yield _double(given)

    def loop(self, new: Any, args: Any, kwargs: Any) -> Any:
        return self.author(new, *args, **kwargs)

    def fold(self, new: Any, args: Any, kwargs: Any) -> Any:
        whole = all(
            x.shape == y.shape
            for x, y in zip(tree_leaves((args, kwargs)), tree_leaves(self.given), strict=True)
            if isinstance(x, Tensor)
        )
        batches = self.decision.loops[0]
        run = self._run = LoopRun(new, new._single_spike.time, fixed=self.decision.loops[2])
        if self.decision.expand:
            run.expand, run.indexed = True, self.decision.loops[1]
            run.batches = [size if whole else min(size, _SAMPLES) for size in batches]
        return run_folded(run, self.folded, args, kwargs)

    def place(self, new: Any) -> Place:
        _, num_steps, batch = super().place(new)
        return self._run.number, num_steps, batch


class _LoopOutside(_Runs):
    """A model that computes one step."""

    advice = (
        "Change forward so that every row of its input is computed on its own, from this step "
        "only: a leaky trace is a snntorch.Leaky with reset_mechanism='none'"
    )

    def inputs(self) -> Iterator[tuple[Any, Any]]:
        run = Run(self.base, self.folded, *self.given)
        few = run.with_samples(_SAMPLES + (run.extent[1] == _SAMPLES))  # never as many as there are
        yield _double((few.args, few.kwargs))
        yield _double(self.given)

    def fold(self, new: Any, args: Any, kwargs: Any) -> Any:
        return Run(new, self.folded, args, kwargs).run_folded(self.decision.expand)

    def loop(self, new: Any, args: Any, kwargs: Any) -> Any:
        run = Run(new, self.author, args, kwargs)
        steps = [
            list(_leaves(self.author(new, *run.at_step(step, args), **run.at_step(step, kwargs))))
            for step in range(run.extent[0])
        ]
        return _Outputs(
            (name, _over_time([values[index][1] for values in steps], run.time_dim))
            for index, (name, _) in enumerate(steps[0])
        )


def _over_time(values: list[Any], dim: int) -> Any:
    """The outputs of all steps, with time as the dimension ``dim``."""
    if all(isinstance(x, Tensor) for x in values):
        return torch.stack(values, min(dim, values[0].dim()))
    same = all(_is_same(values[0], x) for x in values)
    return values[0] if same else _Various()


class _Outputs(list[tuple[str, Any]]):
    """The parts of an output, with their places."""


class _Various:
    """An output other than a tensor that differs from step to step."""

    def __repr__(self) -> str:
        return "other at every step"


class _Differs(Exception):
    """The message says how the model differs from the author's."""


def _spans_of(time: Time) -> Spans:
    """The calls of each neuron in the last call of a model; one step has no loop of its own."""
    outside: Spans = {path: [[count, 0]] for path, count in Counter(time.called).items()}
    return outside | time.spans


def _compare(runs: _Runs, kept: Kept) -> tuple[str, str]:
    """Why no comparison was possible, and how the converted model differs."""
    failed: Exception | None = None
    for given in runs.inputs():
        for noise in (False, True):
            folded: Any = None
            order: list[Place] = []
            spans: Spans = {}
            error: Exception | None = None
            difference = ""
            try:
                folded, order = runs.of_folded(given, noise)
                spans = _spans_of(folded.model._single_spike.time)
            except _Differs as differs:
                difference = str(differs)
            except Exception as raised:
                error = raised
            kept.restore()  # both start from the same state of closures and globals
            try:
                loop = runs.of_loop(given, order, spans, noise)
            except _Differs as differs:
                difference = difference or str(differs)
            except Exception as raised:  # such as a fixed batch size
                failed = error or raised
                break
            if error is not None:
                difference = f"the loop over time runs, and the converted model raises: {error}"
            difference = difference or _difference(runs, folded, loop)
            difference = difference or runs.second_call(folded, given)
            if not difference:
                return "", ""
            # A slight change of the weights moves a membrane away from its threshold.
        else:
            advice = "" if difference.endswith(_READS_STATE) else f". {runs.advice}"
            return "", difference + advice
    first_line = f"{type(failed).__name__}: {failed}".partition("\n")[0]
    return f"it does not run on a copy in float64 ({first_line})", ""


def _difference(runs: _Runs, folded: _Result, loop: _Result) -> str:
    """How the folded model differs from the author's loop; "" if it does not."""
    layer = _first_layer(folded, loop)
    reason = ""
    if layer:
        where, step = layer
        reason = f": {where} differs first at step {step}"
        if step and loop.changed:
            changed = ", ".join(loop.changed[:3])
            reason += f", and the loop changes {changed}: a step before has an effect on it"
        elif step:
            reason += ", so steps or rows of the batch depend on one another"
        else:
            reason += (
                ", the first one: the rows of the batch depend on one another, or on a value of an "
                "earlier call"
            )
    names = [name for name, _ in folded.outputs]
    if names != [name for name, _ in loop.outputs]:
        return (
            f"the author's loop returns {len(loop.outputs)} values, the converted model "
            f"{len(names)}{reason}"
        )
    for (name, mine), (_, theirs) in zip(folded.outputs, loop.outputs, strict=True):
        where = _output(name)
        if not isinstance(theirs, Tensor) or not isinstance(mine, Tensor):
            if isinstance(theirs, Tensor) or isinstance(mine, Tensor) or not _is_same(mine, theirs):
                return f"{where} is {mine!r}, and {theirs!r} in the author's loop{reason}"
            continue
        if mine.shape != theirs.shape:
            return (
                f"{where} has shape {tuple(mine.shape)}, and {tuple(theirs.shape)} in the "
                f"author's loop{reason}"
            )
        gap = _gap(mine, theirs)
        if gap is not None:
            if not layer and _is_last_step(mine, theirs):
                reason = f": it is that of the last step at every step. {_READS_STATE}"
            return (
                f"{where} differs from that of the author's loop, first at index {gap}"
                f"{reason or '. Its steps or the rows of its batch depend on one another'}"
            )
    if layer and isinstance(runs, _LoopOutside):
        return f"the model differs from the author's loop{reason}"
    rules = {getattr(module, "gradient", "masked") for module in runs.base.modules()}
    return _gradient_difference(folded, loop) if rules == {"masked"} else ""


def _is_last_step(mine: Tensor, theirs: Tensor) -> bool:
    """Whether all steps of an output (T, ...) are the last step of the author's."""
    if not mine.dim() or len(mine) < 2:
        return False
    return _gap(mine, theirs[-1].expand_as(mine)) is None


def _first_layer(folded: _Result, loop: _Result) -> tuple[str, int] | None:
    """The first layer, in the order of their calls, and its first step that differs."""
    for where, mine, theirs in folded.layers.pairs(loop.layers):
        if (gap := _gap(mine, theirs)) is not None:
            return where, gap[0]
    return None


def _gradient_difference(folded: _Result, loop: _Result) -> str:
    for name, theirs in loop.gradients.items():
        mine = folded.gradients.get(name)
        size = 0.0 if theirs is None else theirs.norm().item()
        gap = (0 if mine is None else mine) - (0 if theirs is None else theirs)
        gap = gap.norm().item() if isinstance(gap, Tensor) else 0.0
        if math.isfinite(size) and gap > _TOLERANCE * size + 1e-9:
            return (
                f"the gradient of {name!r} differs from that of the author's loop: a step may "
                "detach a value that the next step uses"
            )
    return ""


def _gap(mine: Tensor, theirs: Tensor) -> tuple[int, ...] | None:
    """The first index at which two tensors differ."""
    scale = theirs.detach().abs().double().nan_to_num().amax().item() if theirs.numel() else 0
    close = torch.isclose(
        mine.detach().double(),
        theirs.detach().double(),
        rtol=_TOLERANCE,
        atol=_TOLERANCE * max(scale, 1e-3),
        equal_nan=True,
    )
    return None if close.all() else tuple(close.logical_not().nonzero()[0].tolist())


def _output(name: str) -> str:
    return f"output {name}" if name else "the output"


def _leaves(out: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The parts of an output, with their places."""
    if isinstance(out, LazyTensor):
        yield name, out.to_dense()
    elif isinstance(out, _Outputs):
        yield from out
    elif isinstance(out, dict):
        for key, value in out.items():
            yield from _leaves(value, f"{name}[{key!r}]")
    elif isinstance(out, (list, tuple)):
        for index, value in enumerate(out):
            yield from _leaves(value, f"{name}[{index}]")
    elif dataclasses.is_dataclass(out) and not isinstance(out, type):
        for field in dataclasses.fields(out):
            yield from _leaves(getattr(out, field.name, None), f"{name}.{field.name}")
    else:
        yield name, out


def _double(given: Any) -> Any:
    def double(x: Any) -> Any:
        if isinstance(x, LazyTensor):
            x = x.to_dense()
        if not isinstance(x, Tensor):
            return x
        return x.detach().double() if x.is_floating_point() else x.detach()

    return tree_map(double, given, is_leaf=lambda x: isinstance(x, LazyTensor))


def _is_same(one: Any, two: Any) -> bool:
    """Whether two values are equal; of objects, whether they are of one type."""
    if isinstance(one, Tensor) and isinstance(two, Tensor):
        return one.shape == two.shape and torch.equal(one, two)
    simple = (int, float, bool, str, bytes, type(None))
    if isinstance(one, simple) and isinstance(two, simple):
        return one == two or (one != one and two != two)
    return type(one) is type(two)


def _contents(model: nn.Module) -> dict[str, Any]:
    """The attributes of the user's code, and buffers, by path."""
    return {
        f"self.{path}.{name}" if path else f"self.{name}": x.clone() if isinstance(x, Tensor) else x
        for path, module in model.named_modules()
        if not isinstance(module, SpikingNeuron)
        for name, x in (*vars(module).items(), *module._buffers.items())
        if name not in INTERNAL
    }
