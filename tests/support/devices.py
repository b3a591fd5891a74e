"""The devices of the tests, and data that is not part of the project."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from snn_single_spike import backends

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared"
"""Data that is not part of the project. Tests that need it skip without it."""
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def runnable(*names: str) -> list:
    """The named backends as test parameters, skipped where one cannot run."""
    device = {"triton": DEVICE}
    parameters = []
    for name in names:
        obstacle = backends.missing(name, device.get(name, "cpu"))
        marks = [pytest.mark.skip(reason=f"{name}: {obstacle}")] if obstacle else []
        parameters.append(pytest.param(name, marks=marks))
    return parameters


def device_of(backend: str) -> str:
    """The device of tensors for ``backend`` in these tests."""
    return DEVICE if backend == "triton" else "cpu"
