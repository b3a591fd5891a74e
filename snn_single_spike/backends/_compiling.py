"""Marks functions for torch.compile, without importing the compiler."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

F = TypeVar("F", bound=Callable[..., object])


def constant_when_compiled(function: F) -> F:
    """As ``torch.compiler.assume_constant_result``, which would import the compiler and triton."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
