"""How functions present themselves to torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

F = TypeVar("F", bound=Callable[..., object])


def constant_when_compiled(function: F) -> F:
    """``torch.compiler.assume_constant_result``, which by itself would import the compiler,
    and with it triton, whenever this package is imported."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
