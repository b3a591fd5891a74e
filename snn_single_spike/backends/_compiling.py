"""Marks functions for torch.compile, and detects tracing, without importing the compiler."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor

F = TypeVar("F", bound=Callable[..., object])
_FAKE = torch._C._TorchDispatchModeKey.FAKE
_PROXY = torch._C._TorchDispatchModeKey.PROXY


def constant_when_compiled(function: F) -> F:
    """As ``torch.compiler.assume_constant_result``, which would import the compiler and triton."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def never_compiled(function: F) -> F:
    """As ``torch.compiler.disable``, which would import the compiler: a graph ends at the call."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        compiler = sys.modules.get("torch._dynamo")
        return (compiler.disable(function) if compiler else function)(*args, **kwargs)

    run._torchdynamo_disable = True  # type: ignore[attr-defined]
    return run  # type: ignore[return-value]


@contextlib.contextmanager
def outside_of_compiler() -> Iterator[None]:
    """Run code in eager mode, in a function that is constant for ``torch.compile``."""
    before = getattr(torch.compiler, "_is_compiling_flag", False)
    torch.compiler._is_compiling_flag = False
    try:
        yield
    finally:
        torch.compiler._is_compiling_flag = before


def is_traced() -> bool:
    """Whether tensors have no values to read: in a compiled graph, or under FakeTensorMode."""
    if torch.compiler.is_compiling():
        return True
    return torch._C._get_dispatch_mode(_FAKE) is not None


def is_recorded(tensor: Tensor) -> bool:
    """Whether a CUDA graph records operations on the tensor, so that its values cannot be read."""
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()


def only_shapes() -> bool:
    """Whether operators run for the shapes of their results, and nothing records them."""
    mode = torch._C._get_dispatch_mode
    return mode(_FAKE) is not None and mode(_PROXY) is None


def is_batched(gradient: Tensor | None) -> bool:
    """Whether a gradient is one of several that torch computes at once: ``is_grads_batched``."""
    if gradient is None or torch.compiler.is_compiling():
        return False
    transformed = torch._C._are_functorch_transforms_active()  # vmap of a function of torch.func
    return transformed or torch._C._functorch.is_legacy_batchedtensor(gradient)
