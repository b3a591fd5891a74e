"""Shared fixtures. The interpreter must be chosen before triton is first imported."""

import os

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

from pathlib import Path

import hypothesis
import pytest

from snn_single_spike import backends

hypothesis.settings.register_profile("default", deadline=None, max_examples=25)
hypothesis.settings.load_profile("default")

SHARED = Path(__file__).parent.parent.parent / "shared"
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
    """Where tensors for ``backend`` have to be in these tests."""
    return DEVICE if backend == "triton" else "cpu"


@pytest.fixture(params=runnable("torch", "numba", "triton"))
def backend(request: pytest.FixtureRequest) -> str:
    """Every implementation in turn; Triton's in its interpreter where there is no GPU."""
    return request.param


@pytest.fixture(params=runnable("torch", "numba"))
def cpu_backend(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=runnable("torch", "numba"))
def linear_backend(request: pytest.FixtureRequest) -> str:
    """Every implementation of linear layers from spike times."""
    return request.param


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
