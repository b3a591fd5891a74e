"""Random arguments of operators."""

from __future__ import annotations

import torch


def problem(shape, dtype=torch.float64, *, per_neuron=True, seed=0):
    """Random arguments of `operator_run`; membranes start below threshold."""
    make = torch.Generator().manual_seed(seed)
    _, batch, *features = shape
    size = tuple(features) if per_neuron else ()

    def normal(*size, scale=1.0):
        return torch.randn(size, generator=make, dtype=dtype) * scale

    return {
        "current": normal(*shape, scale=0.5),
        "beta": torch.rand(size, generator=make, dtype=dtype),
        "threshold": 0.5 + torch.rand(size, generator=make, dtype=dtype),
        "factor": 0.5 + torch.rand(size, generator=make, dtype=dtype),
        "mem_0": normal(batch, *features, scale=0.1),
        "g": normal(*shape),
        "h": normal(*shape),
        "grad_times": normal(batch, *features),
    }
