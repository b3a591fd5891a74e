"""The table of capabilities: tiny layers run, forward and backward, with every option of the code.

``python -m docs.site.capabilities`` prints the table.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import snn_single_spike
from snn_single_spike import MaterializationWarning, SpikeEvents, SpikeTimes, backends
from snn_single_spike.backends._types import GRADIENT_RULES, RESETS
from snn_single_spike.functional import SPIKE_FORMATS
from snn_single_spike.ops.validation import _DTYPES

from docs.site.public_api import public_names

Layer = Callable[..., nn.Module]

# Arguments that every layer gets, and values of others without a default
ALWAYS = {"alpha": 0.9, "beta": 0.8, "all_to_all": False}
ARGUMENTS = ALWAYS | {
    **{"in_features": 6, "out_features": 6, "in_channels": 1, "out_channels": 1, "kernel_size": 2},
}
INPUTS: dict[str, Callable[[Tensor], Any]] = {
    "dense": lambda spikes: spikes,
    "`SpikeTimes`": SpikeTimes.from_dense,
    "`SpikeEvents`": SpikeEvents.from_dense,
}
OPTIONS = {
    "gradient": GRADIENT_RULES,
    "reset_mechanism": RESETS,
    "dtype": tuple(_DTYPES),
    "backend": backends.BACKENDS,
}
DEVICES = {"CPU": "cpu", "GPU": "cuda"}
INPUT_HEADINGS = ("layer", "from `SpikeTimes`", "from `SpikeEvents`")
OPTION_HEADINGS = ("rules", "resets", "types", "backends")


def accepts(layer: Layer, option: str) -> bool:
    """Whether a constructor takes an option, by its name or among ``**options``."""
    parameters = inspect.signature(layer).parameters
    return option in parameters or any(p.kind is p.VAR_KEYWORD for p in parameters.values())


def layers() -> dict[str, Layer]:
    """The constructors of the public layers with a backend, one for each format of their spikes."""
    found: dict[str, Layer] = {}
    for name in public_names(snn_single_spike, "modules"):
        layer = getattr(snn_single_spike, name)
        if not issubclass(layer, nn.Module) or not accepts(layer, "backend"):
            continue
        found[f"`{name}`"] = layer
        if "spike_format" in inspect.signature(layer).parameters:
            for spike_format in SPIKE_FORMATS[1:]:
                called = f'`{name}(..., spike_format="{spike_format}")`'
                variant = functools.partial(layer, spike_format=spike_format)
                with contextlib.suppress(ValueError):  # a layer that may return one format only
                    build(variant)
                    found[called] = variant
    return found


def required(layer: Layer) -> list[str]:
    """The arguments without a default."""
    parameters = inspect.signature(layer).parameters.values()
    return [p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]


def build(layer: Layer, dtype: torch.dtype = torch.float32, **options: Any) -> nn.Module:
    """The layer, behind a linear layer if it has no weights of its own."""
    if unknown := set(required(layer)) - ARGUMENTS.keys():
        raise KeyError(f"{layer} requires {unknown}: add values to ARGUMENTS")
    given = {name: ARGUMENTS[name] for name in required(layer)}
    given |= {name: ALWAYS[name] for name in inspect.signature(layer).parameters if name in ALWAYS}
    made = layer(**given, **options)
    weighted = hasattr(made, "weight")
    return (made if weighted else nn.Sequential(nn.Linear(6, 6), made)).to(dtype)


@functools.cache
def run(layer: Layer, kind: str, dtype: torch.dtype, **options: Any) -> set[str]:
    """Forward and backward; returns the operators that ran, and "dense" if spikes became dense."""
    used: set[str] = set()
    load = backends.load

    def recorded(backend: str, op: str) -> Any:
        used.add(op)
        return load(backend, op)

    with (
        warnings.catch_warnings(record=True) as caught,
        mock.patch.object(backends, "load", recorded),
        torch.random.fork_rng(devices=[]),
    ):
        warnings.simplefilter("always")
        torch.manual_seed(0)
        network = build(layer, dtype, **options)
        (weight,) = (p for name, p in network.named_parameters() if name.endswith("weight"))
        _, features, *extents = weight.shape
        spikes = torch.zeros(5, 2, features, *(2 * extent for extent in extents), dtype=dtype)
        spikes[1] = 1
        out = network(INPUTS[kind](spikes))
        out = out[0] if isinstance(out, tuple) else out
        (out if isinstance(out, Tensor) else out.to_dense()).sum().backward()
    if any(issubclass(w.category, MaterializationWarning) for w in caught):
        used.add("dense")
    return used


def works(layer: Layer, option: str, value: Any) -> bool:
    """Whether the layer runs with an option, whatever its input.

    Every backend has the signatures of plain torch, and the conformance tests compare the results.
    So a backend supports a layer if it has the operators that the layer uses.
    """
    try:
        if option != "backend":
            options = {"dtype": torch.float32, option: value}
            return all(run(layer, kind, backend="torch", **options) for kind in INPUTS)
        used = set().union(*(run(layer, kind, torch.float32, backend="torch") for kind in INPUTS))
    except (TypeError, ValueError):
        return False
    folder = Path(backends.__file__).parent / value
    return all((folder / f"{op}.py").exists() for op in used - {"dense"})


def devices(backend: str) -> str:
    """The devices that a backend supports where its packages are installed."""
    everything = dict.fromkeys(backends._INSTALLED, True)
    with (
        mock.patch.object(backends, "_INSTALLED", everything),
        mock.patch.object(backends, "_numba_obstacle", return_value=None),
        mock.patch.object(backends, "interpreted", return_value=False),
    ):
        found = [name for name in DEVICES if backends.missing(backend, DEVICES[name]) is None]
    return " and ".join(found)


def named(values: Sequence[Any]) -> str:
    return ", ".join(f"`{value}`".replace("torch.", "") for value in values)


def row(name: str, layer: Layer) -> Iterator[str]:
    yield name
    for kind in ("`SpikeTimes`", "`SpikeEvents`"):
        dense = "dense" in run(layer, kind, torch.float32, backend="torch")
        yield "made dense" if dense else "computed"
    for option, values in OPTIONS.items():
        supported = [value for value in values if works(layer, option, value)]
        yield "all" if len(supported) == len(values) else named(supported) or "–"


def table() -> str:
    """The table, followed by the values that "all" abbreviates."""
    head = INPUT_HEADINGS + OPTION_HEADINGS
    rows = [head, ["---"] * len(head), *itertools.starmap(row, layers().items())]
    body = "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
    everything = "\n".join(
        f"- all {heading}: {named(values)}"
        for heading, values in zip(OPTION_HEADINGS, OPTIONS.values(), strict=True)
    )
    places = ", ".join(f"`{name}`: {devices(name)}" for name in backends.BACKENDS)
    return f"{body}\n\n{everything}\n- devices of the backends: {places}\n"


if __name__ == "__main__":
    print(table())
