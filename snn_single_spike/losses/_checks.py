"""Argument checks of the losses. Every error names the argument, the value and the fix."""

from __future__ import annotations

import math
import operator
from typing import Any

from torch import Tensor

from ..backends._compiling import is_traced
from ..ops.validation import check_device
from ..spikes import DelayedSpikes

BATCH_REDUCTIONS = ("mean", "sum", "none")


def values_are_checked(x: Tensor) -> bool:
    """Whether reading a value back is cheap: on a CPU, outside of a compiled graph."""
    return x.device.type == "cpu" and not is_traced()


def reject_delayed(spk_out: object) -> None:
    """Reject spikes that are shared between two steps, and have no one time."""
    if isinstance(spk_out, DelayedSpikes):
        raise ValueError(
            "spk_out are DelayedSpikes, which share each spike between two steps, but one step for "
            "each spike is expected: pass spk_out.interpolated_times to a loss constructed with "
            "num_steps=T, or round the delays"
        )


def check_number(name: str, value: float, least: float = -math.inf, strict: bool = False) -> float:
    """A finite number of at least ``least``, or above ``least`` if ``strict``."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not (number > least if strict else number >= least) or math.isinf(number):
        bound = "" if least == -math.inf else f" {'above' if strict else 'of at least'} {least:g}"
        raise ValueError(f"{name}={value!r} must be a number{bound}")
    return number


def check_optional(name: str, value: float | None) -> float | None:
    return None if value is None else check_number(name, value)


def check_num_steps(num_steps: Any) -> int | None:
    if num_steps is None:
        return None
    try:
        number = operator.index(num_steps)
    except TypeError:
        raise TypeError(
            f"num_steps={num_steps!r} must be the number of time steps, an integer"
        ) from None
    if number < 1:
        raise ValueError(f"num_steps={number} must be the number of time steps, T >= 1")
    return number


def check_class_weight(weight: Tensor | None, scores: Tensor) -> Tensor | None:
    """One weight for each class of the scores (B, C), in their type."""
    if weight is None:
        return None
    if not isinstance(weight, Tensor) or weight.shape != scores.shape[1:]:
        found = tuple(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__
        raise ValueError(
            f"weight must be a tensor with one value per class, ({scores.shape[1]},), not {found}"
        )
    check_device("weight", weight, scores.device, "recording")
    return weight.to(scores.dtype)


def resolve_step(name: str, value: float | None, num_steps: int, default: float = 0.0) -> float:
    """A time in steps from the start; a negative ``value`` counts from the end."""
    if value is None:
        return default
    if not -num_steps <= value <= num_steps:
        raise ValueError(
            f"{name}={value!r} is out of range for {num_steps} time steps: use 0 to {num_steps} "
            f"({num_steps} means silence), or -{num_steps} to -1 to count from the end"
        )
    return num_steps + value if value < 0 else value
