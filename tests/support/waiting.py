"""Finds, on a CPU, operations that wait for a GPU. None may run while a CUDA graph records."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

WAITS = {
    *("_local_scalar_dense", "nonzero", "masked_select", "bincount", "equal"),
    *("unique_dim", "_unique2", "unique_consecutive", "is_nonzero"),
}
"""Operations of ATen whose result, or its shape, has to reach the CPU."""


class NoWait(TorchDispatchMode):
    """Raises at the first operation that would wait for a GPU."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        name = func._schema.name.removeprefix("aten::")
        masks = name == "index" and any(
            x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1]
        )
        if name in WAITS or masks:
            raise RuntimeError(f"{func} would wait for the GPU")
        return func(*args, **(kwargs or {}))
