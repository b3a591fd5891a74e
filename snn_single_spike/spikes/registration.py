"""Registers spikes with torch: pytree nodes, collation in a DataLoader, and torch.load.

:mod:`snn_single_spike.spikes` imports this module for its effects.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn.parallel import distributed as parallel
from torch.utils import _pytree as pytree
from torch.utils.data._utils.collate import default_collate_fn_map

from ..backends._events import Events
from .current import LazyCurrent
from .delayed import DelayedSpikes
from .events import SpikeEvents
from .lazy import LazyMembrane, LazyTensor
from .times import SpikeTimes

# Tensors by name, and options by name. torch.export.save writes the options as JSON.
_State = tuple[dict[str, Any], dict[str, Any]]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _times_state(spikes: SpikeTimes) -> _State:
    names = ("times", "height", "interpolated_times", "carrier")
    options = {"num_steps": spikes.num_steps, "folded": spikes.folded}
    return {name: getattr(spikes, name) for name in names}, options | {"dtype": _name(spikes.dtype)}


def _times_of(tensors: dict[str, Any], options: dict[str, Any]) -> SpikeTimes:
    state = {**tensors, **options, "dtype": getattr(torch, options["dtype"])}
    new = object.__new__(SpikeTimes)
    new.__dict__.update(state, _events=None)
    return new


def _events_state(spikes: SpikeEvents) -> _State:
    events = spikes.events()._asdict()
    tensors = {name: events.pop(name) for name in ("offsets", "times", "units", "values")}
    tensors |= {"height": spikes.height, "carrier": spikes.carrier}
    options: dict[str, Any] = {"num_steps": spikes.num_steps, "folded": spikes.folded}
    options |= {"features": list(spikes.features), "dtype": _name(spikes.dtype)}
    return tensors, options | events


def _events_of(tensors: dict[str, Any], options: dict[str, Any]) -> SpikeEvents:
    options = dict(options)
    flags = {name: options.pop(name) for name in ("once", "padded")}
    tensors = dict(tensors)
    state = options | {
        "features": torch.Size(options["features"]),
        "dtype": getattr(torch, options["dtype"]),
        "height": tensors.pop("height"),
        "carrier": tensors.pop("carrier"),
    }
    new = object.__new__(SpikeEvents)
    new.__dict__.update(state, _events=Events(**tensors, **flags))
    return new


def _delayed_state(spikes: DelayedSpikes) -> _State:
    return {"spikes": spikes.spikes, "delay": spikes.delay}, {"folded": spikes.folded}


def _delayed_of(tensors: dict[str, Any], options: dict[str, Any]) -> DelayedSpikes:
    return DelayedSpikes(tensors["spikes"], tensors["delay"])._is_like(**options)


def _is_distributed() -> bool:
    traced = torch.compiler.is_compiling()
    return not traced and distributed.is_available() and distributed.is_initialized()


def _current_state(current: LazyCurrent) -> _State:
    spikes, weight, bias = current.linear()
    if _is_distributed():
        weight, bias = _as_edge(weight), None if bias is None else _as_edge(bias)
    return {"spikes": spikes, "weight": weight, "bias": bias}, {"folded": current.folded}


def _current_of(tensors: dict[str, Any], options: dict[str, Any]) -> LazyCurrent:
    new = object.__new__(LazyCurrent)
    new.__setstate__({**tensors, **options})
    return new


def _as_edge(x: Tensor) -> Tensor:
    """A view of a leaf, with a ``grad_fn``: DistributedDataParallel replaces no leaf of an output.

    It passes all other tensors through a function that starts the reduction of gradients.
    """
    return x.view_as(x) if x.requires_grad and x.is_leaf else x


def _membrane_state(mem: LazyMembrane) -> _State:
    return {"mem": mem.to_dense()}, {}


def _membrane_of(tensors: dict[str, Any], options: dict[str, Any]) -> Any:
    return tensors["mem"]


def _check_unused_parameters(x: LazyTensor) -> None:
    """Reject an output in which DistributedDataParallel does not find the parameters in use.

    With ``find_unused_parameters=True`` it follows the graph back from the tensors of an output.
    It finds no tensors in spike times, and would take every parameter for unused. It flattens the
    output afterwards.
    """
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code.co_name != "_post_forward":
        frame = frame.f_back
    ddp = None if frame is None else frame.f_locals.get("self")
    if frame is None or not isinstance(ddp, parallel.DistributedDataParallel):
        return
    if ddp.static_graph or not ddp.find_unused_parameters or not x.requires_grad:
        return
    output = frame.f_locals.get("output")
    if not any(tensor.requires_grad for tensor in parallel._find_tensors(output)):
        raise RuntimeError(
            f"DistributedDataParallel(find_unused_parameters=True) finds no gradient in "
            f"{type(x).__name__}, and would take every parameter for unused: pass "
            "static_graph=True, or return x.to_dense() from the model"
        )


def _register(
    cls: type,
    state: Callable[[Any], _State],
    make: Callable[[dict[str, Any], dict[str, Any]], Any],
) -> None:
    """Register a class as a pytree node. The leaves are its tensors."""

    def parts(x: Any) -> tuple[dict[str, Any], dict[str, Any], Any]:
        tensors, options = state(x)
        # A number of a graph with named dimensions is an output of the graph, not a constant.
        symbolic = {k: value for k, value in options.items() if isinstance(value, torch.SymInt)}
        fixed = {name: value for name, value in options.items() if name not in symbolic}
        return tensors, symbolic, [list(tensors), list(symbolic), fixed]  # JSON has no tuples

    def flatten(x: Any) -> tuple[list[Any], Any]:
        if _is_distributed():
            _check_unused_parameters(x)
        tensors, symbolic, context = parts(x)
        return [*tensors.values(), *symbolic.values()], context

    def flatten_with_keys(x: Any) -> tuple[list[Any], Any]:
        tensors, symbolic, context = parts(x)
        named = {**tensors, **symbolic}
        return [(pytree.GetAttrKey(name), value) for name, value in named.items()], context

    def unflatten(leaves: Any, context: Any) -> Any:
        tensors, symbolic, options = context
        named = dict(zip([*tensors, *symbolic], leaves, strict=True))
        numbers = {name: named.pop(name) for name in symbolic}
        return make(named, options | numbers)

    pytree.register_pytree_node(
        cls,
        flatten,
        unflatten,
        serialized_type_name=f"{cls.__module__}.{cls.__qualname__}",
        flatten_with_keys_fn=flatten_with_keys,
    )


_register(SpikeTimes, _times_state, _times_of)
_register(SpikeEvents, _events_state, _events_of)
_register(DelayedSpikes, _delayed_state, _delayed_of)
_register(LazyCurrent, _current_state, _current_of)
_register(LazyMembrane, _membrane_state, _membrane_of)


def _same(parts: Sequence[Any], name: str) -> Any:
    """The value of an option that all parts of a batch must share."""
    values = {getattr(part, name) for part in parts}
    if len(values) > 1:
        raise ValueError(
            f"samples of one batch have different {name}, {sorted(values, key=str)}: construct all "
            f"samples with the same {name}"
        )
    return values.pop()


def _equal(one: Tensor | None, other: Tensor | None) -> bool:
    if one is None or other is None:
        return one is other
    return torch.equal(one, other)


def _height(parts: Sequence[SpikeTimes] | Sequence[SpikeEvents]) -> Tensor | None:
    """The height that all samples of a batch share."""
    height = parts[0].height
    if not all(_equal(part.height, height) for part in parts):
        raise ValueError(
            "samples of one batch have different heights, but a batch has one height for each "
            "feature: construct all samples with the same height"
        )
    return height


def _collate_times(parts: Sequence[SpikeTimes], **_: Any) -> SpikeTimes:
    """One batch from several, such as ``SpikeTimes.samples`` returns."""
    _same(parts, "num_steps")
    _same(parts, "features")
    times = torch.cat([part.times for part in parts])
    dtype = _same(parts, "dtype")
    return SpikeTimes(times, parts[0].num_steps, height=_height(parts), dtype=dtype)


def _collate_events(parts: Sequence[SpikeEvents], **_: Any) -> SpikeEvents:
    num_steps, features = _same(parts, "num_steps"), _same(parts, "features")
    events = [part.events() for part in parts]
    lengths = torch.cat([e.offsets.diff() for e in events])
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    values: Tensor | None = None
    if any(e.values is not None for e in events):
        values = torch.cat(
            [e.times.new_ones(len(e.times), dtype=part.dtype) if e.values is None else e.values
             for e, part in zip(events, parts, strict=True)]
        )  # fmt: skip
    joined = Events(
        offsets, torch.cat([e.times for e in events]), torch.cat([e.units for e in events]), values
    )
    batch = SpikeEvents(joined, num_steps, features, dtype=_same(parts, "dtype"))
    batch.height = _height(parts)
    return batch


default_collate_fn_map.update({SpikeTimes: _collate_times, SpikeEvents: _collate_events})
torch.serialization.add_safe_globals([SpikeTimes, SpikeEvents, Events])
