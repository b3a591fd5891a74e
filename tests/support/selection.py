"""Chooses the cases that run without ``--exhaustive``."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import pytest
import torch

TARGET = "sm_90"
"""The target that kernels are compiled for."""
COMPILED = (
    *("forward", "forward synaptic", "forward every", "readout sum"),
    *("backward masked", "backward learned", "backward spike time"),
    *("linear first spikes", "linear dot", "linear readout sum"),
    *("linear weight rows", "linear weight impulses"),
    *("conv first spikes", "conv weight rows", "conv input impulses"),
)
"""The kernels of the usual networks, which are compiled for it."""
INTERPRETED = 4
"""Cases of a test function in Triton's interpreter, unless it is marked ``every_case``."""


def left_out(items: Sequence[pytest.Item]) -> Iterator[pytest.Item]:
    """Compilations of other variants or for other targets, and cases in the interpreter.

    Each takes a second.
    """
    compiled = [item for item in items if _parameter(item, "target") is not None]
    for item in compiled:
        name = _parameter(item, "name")
        if _parameter(item, "target") != TARGET or name not in (None, *COMPILED):
            yield item
    if torch.cuda.is_available():
        return
    interpreted = [item for item in items if _is_interpreted(item)]
    for _, group in itertools.groupby(interpreted, lambda item: item.nodeid.partition("[")[0]):
        cases = list(group)
        # A stride next to a divisor of the number of cases varies every parameter.
        stride = len(cases) // INTERPRETED + 1
        chosen = {i * stride for i in range(INTERPRETED)}
        yield from (case for i, case in enumerate(cases) if i not in chosen)


def _is_interpreted(item: pytest.Item) -> bool:
    every = item.get_closest_marker("every_case")
    return every is None and _parameter(item, "backend") == "triton"


def _parameter(item: pytest.Item, name: str) -> object:
    given = getattr(item, "callspec", None)
    return given and given.params.get(name)
