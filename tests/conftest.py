"""Shared fixtures. This file selects the interpreter before triton is imported."""

import os
from collections.abc import Iterator

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

import hypothesis
import pytest

from tests.support.devices import runnable
from tests.support.poison import poisoned

hypothesis.settings.register_profile("default", deadline=None, max_examples=25)
hypothesis.settings.load_profile("default")


@pytest.fixture(params=runnable("torch", "numba", "triton"))
def backend(request: pytest.FixtureRequest) -> str:
    """Every backend in turn. Without a GPU, Triton runs in its interpreter."""
    return request.param


@pytest.fixture(params=runnable("torch", "numba"))
def cpu_backend(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=runnable("torch", "numba", *["triton"] * torch.cuda.is_available()))
def linear_backend(request: pytest.FixtureRequest) -> str:
    """
    Every implementation of linear layers from spike times.

    Triton's interpreter takes a second for each: without a GPU it runs in ops/test_conformance.py
    and kernels/test_triton.py only.
    """
    return request.param


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "untouched: memory is as the system gives it, not poisoned")


@pytest.fixture(autouse=True)
def _poisoned_memory(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fill memory with NaN, so that a kernel that does not write an output returns NaN."""
    if request.node.get_closest_marker("untouched"):
        yield
    else:
        with poisoned():
            yield


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread: small products take most of their time in waits of threads for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
