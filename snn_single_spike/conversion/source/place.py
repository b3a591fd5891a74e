"""Where in the user's code something happened, for messages."""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterable, Sequence
from types import FrameType
from typing import Any

from torch import nn

__all__ = [
    "ENTRY",
    "class_name",
    "failing_layer",
    "of_package",
    "of_torch",
    "user_depth",
    "user_line",
]

ENTRY = "run_folded"  # the function that calls the forward of the user's model


def failing_layer(model: nn.Module, error: BaseException) -> str:
    """The layer and the line of the user's code that have failed, as the beginning of a message."""
    frames, traceback = [], error.__traceback__
    while traceback:
        frames.append((traceback.tb_frame, traceback.tb_lineno))
        traceback = traceback.tb_next
    found = _place(model, frames[::-1])
    return f"{found}: " if found else ""


def user_line(frame: FrameType | None, model: nn.Module) -> str:
    """The layer and the line of the user's code that runs, as the beginning of a message."""
    frames = []
    while frame is not None and frame.f_code.co_name != ENTRY:
        frames.append((frame, frame.f_lineno))
        frame = frame.f_back
    return _place(model, frames) or "the model"


def _place(model: nn.Module, frames: Sequence[tuple[FrameType, int]]) -> str:
    """The innermost layer, and the innermost line of the user's code; "" if there is neither.

    ``frames`` come with the number of the line that runs, the innermost one first.
    """
    layer = _layer(model, [frame for frame, _ in frames])
    own = ((x, n) for x, n in frames if not of_package(x.f_globals.get("__name__", "")))
    line = next((f"{x.f_code.co_filename}:{n}" for x, n in own), "")
    return ", ".join(filter(None, (layer, line)))


@functools.cache
def of_package(module: str) -> bool:
    """Whether a module of Python is part of torch, snnTorch or this package."""
    return module.partition(".")[0] in ("torch", "snntorch", __name__.partition(".")[0])


def user_depth() -> int:
    """The stack level of the code that calls the model, for warnings."""
    frame, depth = sys._getframe(1), 1
    while frame.f_back is not None and of_package(frame.f_globals.get("__name__", "")):
        frame, depth = frame.f_back, depth + 1
    return depth


def of_torch(code: Any) -> bool:
    """Whether torch defines a class or a function."""
    return _is_in_torch(code.__module__ or "")


@functools.lru_cache(1024)
def _is_in_torch(module: str) -> bool:
    return module.partition(".")[0] == "torch"


def _layer(model: nn.Module, frames: Iterable[FrameType]) -> str:
    paths = {id(module): path for path, module in model.named_modules() if path}
    for frame in frames:
        module = frame.f_locals.get("self")
        if id(module) in paths:
            return f"layer {paths[id(module)]!r} ({class_name(module)})"
    return ""


def class_name(module: Any) -> str:
    """The name of the class that the user has written, or of snnTorch's neuron."""
    kind = getattr(type(module), "_original", None) or vars(module).get("original", type(module))
    return str(kind.__name__)
