"""Argument checks. Every error names the argument, the value found and the fix."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .backends.buffers import state_dtype

GRADIENT_RULES = ("masked", "straight_through", "pre_spike", "spike_time")
RESETS = ("none", "subtract", "zero")
REDUCTIONS = ("sum", "max", "last")
_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(
            f"{name}={value!r} is not known: use one of {', '.join(map(repr, choices))}"
        )


def check_current(current: object) -> Tensor:
    """A floating-point (T, B, *features) tensor with T >= 1."""
    if not isinstance(current, Tensor):
        raise TypeError(f"current must be a torch.Tensor, not {type(current).__name__}")
    if current.dim() < 3:
        raise ValueError(
            f"current has shape {tuple(current.shape)}, but the whole sequence is expected at "
            "once, (time, batch, *features). Drop the loop over time and pass all steps "
            "(torch.stack(steps), or the encoded input itself); for a single step use "
            "current.unsqueeze(0) or SingleSpikeLeaky.step(); for one neuron per sample add a "
            "feature dimension with current.unsqueeze(-1)"
        )
    if current.dtype not in _DTYPES:
        raise TypeError(
            f"current has dtype {current.dtype}, but must be one of float32, float64, float16 or "
            "bfloat16: use current.float()"
        )
    if current.shape[0] == 0:
        raise ValueError(f"current has shape {tuple(current.shape)}: no time steps (T=0)")
    if 0 in current.shape[2:]:
        raise ValueError(f"current has shape {tuple(current.shape)}: no neurons")
    return current


def check_not_nan(name: str, value: Tensor | float) -> None:
    if torch.as_tensor(value).isnan().any():
        raise ValueError(
            f"{name} contains NaN: initialise it with finite values, or, if training made it so, "
            "lower the learning rate"
        )


def check_parameter(name: str, value: Tensor | float, current: Tensor) -> Tensor:
    """A parameter as a flat (P,) tensor in state precision, P = 1 or the number of features."""
    state = state_dtype(current.dtype)
    if not isinstance(value, Tensor):
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise TypeError(
                f"{name} must be a number or a tensor, not {type(value).__name__}"
            ) from None
        if not torch.compiler.is_compiling() and math.isnan(number):
            raise ValueError(f"{name} is NaN: pass a finite number")
        return torch.full((1,), number, dtype=state, device=current.device)
    if value.device != current.device:
        raise ValueError(
            f"{name} is on {value.device}, but the input is on {current.device}: "
            f"move it with {name}.to({str(current.device)!r})"
        )
    # A 0-dimensional tensor takes the type of the others, as in torch.
    if value.dim() > 0 and value.dtype not in (current.dtype, state):
        raise TypeError(
            f"{name} has dtype {value.dtype}, but the input has {current.dtype}: convert one of "
            f"them, {name}.to({current.dtype}) or the whole module"
        )
    # Reading a value back from a GPU would stall it, so there NaN is left to propagate.
    if value.device.type == "cpu" and not torch.compiler.is_compiling():
        check_not_nan(name, value)
    features = current.shape[2:]
    if value.numel() == 1:
        return value.reshape(1).to(state)
    shape = value.shape
    while len(shape) > len(features) and shape[0] == 1:
        shape = shape[1:]
    padded = (1,) * (len(features) - len(shape)) + tuple(shape)
    if len(padded) != len(features) or any(
        size not in (1, full) for size, full in zip(padded, features, strict=True)
    ):
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}, which does not broadcast to the features "
            f"{tuple(features)} of an input of shape {tuple(current.shape)}: pass a scalar or one "
            "value per neuron"
        )
    return value.to(state).reshape(padded).expand(features).flatten().contiguous()


def check_mem(mem: Tensor | None, current: Tensor) -> Tensor | None:
    """An initial membrane (B, *features), flat and in state precision."""
    if mem is None:
        return None
    if not isinstance(mem, Tensor):
        raise TypeError(f"mem must be a torch.Tensor or None, not {type(mem).__name__}")
    if mem.device != current.device:
        raise ValueError(
            f"mem is on {mem.device}, but the input is on {current.device}: "
            f"move it with mem.to({str(current.device)!r})"
        )
    state = state_dtype(current.dtype)
    if mem.dtype not in (current.dtype, state):
        raise TypeError(
            f"mem has dtype {mem.dtype}, but the input has {current.dtype}: use "
            f"mem.to({current.dtype})"
        )
    if mem.shape != current.shape[1:]:
        hint = "; to go on from an earlier call pass mem[-1]" if mem.dim() == current.dim() else ""
        raise ValueError(
            f"mem has shape {tuple(mem.shape)}, but an initial membrane has the shape of one time "
            f"step, {tuple(current.shape[1:])}{hint}"
        )
    return mem.to(state).flatten().contiguous()
