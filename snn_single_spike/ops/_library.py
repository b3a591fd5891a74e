"""Registers operators: one implementation for every device, and a fake for compilers.

``torch.ops.snn_single_spike.*`` are opaque and functional for ``torch.compile`` and
``torch.export``. An operator allocates the requested outputs and passes them to one backend
(:mod:`snn_single_spike.backends`). An operator cannot return None, so an output that is not
requested is an empty tensor at this boundary.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..backends._compiling import only_shapes
from ..backends.memory import empty

_library = torch.library.Library("snn_single_spike", "DEF")
N = TypeVar("N", bound=tuple[Any, ...])
New = Callable[..., Tensor]
Decomposition = Callable[..., tuple[Tensor, ...]]
_functions: dict[str, Callable[..., tuple[Tensor, ...]]] = {}


def register(schema: str, function: Callable[..., tuple[Tensor, ...]]) -> None:
    """Define an operator.

    ``function(new, *arguments)`` allocates its outputs with ``new(wanted, shape, dtype, device)``
    and fills them. For a fake, ``new`` is :func:`allocate_fake` and the function fills nothing.
    """
    _library.define(schema)
    name = schema[: schema.index("(")]

    def implementation(*arguments: Any) -> tuple[Tensor, ...]:
        if not torch.is_grad_enabled():
            return function(allocate, *arguments)
        with torch.no_grad():  # an exported program calls operators outside of an autograd.Function
            return function(allocate, *arguments)

    _functions[name] = function
    # One implementation for all devices: the `backend` argument names the code that runs.
    _library.impl(name, implementation, "CompositeExplicitAutograd")
    torch.library.register_fake(
        f"snn_single_spike::{name}", functools.partial(function, allocate_fake), lib=_library
    )


def decompose(name: str) -> Callable[[Decomposition], Decomposition]:
    """Register a decomposition of an operator into torch's operators, for the ONNX exporter."""

    def register_it(decomposition: Decomposition) -> Decomposition:
        def decomposed(*arguments: Any) -> tuple[Tensor, ...]:
            if only_shapes():  # torch looks for a decomposition there too, if a size is a symbol
                return _functions[name](allocate_fake, *arguments)
            return decomposition(*arguments)

        operator = getattr(torch.ops.snn_single_spike, name).default
        torch._decomp.register_decomposition(operator)(decomposed)
        return decomposition

    return register_it


def allocate(
    wanted: bool, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> Tensor:
    if not wanted:
        return torch.empty(0, dtype=dtype, device=device)
    return empty(shape, dtype=dtype, device=device)


def cleared(new: New) -> New:
    """As ``new``, but the memory holds zeros, to which a kernel adds."""

    def zeros(wanted: bool, *like: Any) -> Tensor:
        tensor = new(wanted, *like)
        return tensor.zero_() if wanted and new is not allocate_fake else tensor

    return zeros


def allocate_fake(
    wanted: bool, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> Tensor:
    return torch.empty(shape if wanted else (0,), dtype=dtype, device=device)


def given(tensor: Tensor) -> Tensor | None:
    """Map the empty placeholder of an output that is not requested to None."""
    return tensor if tensor.numel() else None


def given_of(out: N) -> N:
    """The outputs of an operator, with placeholders mapped to None."""
    return take(type(out), map(given, out))


def take(of: type[N], arguments: Iterator[Any]) -> N:
    """The next arguments of an operator as the NamedTuple that its schema derives from."""
    return of(*itertools.islice(arguments, len(of._fields)))  # type: ignore[attr-defined]
