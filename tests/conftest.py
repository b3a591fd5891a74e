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
from tests.support.selection import left_out

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


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Run the whole suite in one process for each core. A few files start sooner in one process."""
    if hasattr(config, "workerinput") or config.option.usepdb:
        return
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    if whole and getattr(config.option, "numprocesses", 0) is None:  # 0 without pytest-xdist
        config.option.numprocesses = os.cpu_count()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--exhaustive",
        action="store_true",
        help="run every case in Triton's interpreter, and compile the kernels for every target",
    )
    parser.addoption("--networks", type=int, default=40, help="random networks to convert")
    parser.addoption("--first-network", type=int, default=0, help="number of the first of them")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--exhaustive"):
        return
    skipped = set(left_out(items))
    config.hook.pytest_deselected(items=list(skipped))
    items[:] = [item for item in items if item not in skipped]


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):  # the processes share the cores
        torch.set_num_threads(1)
    config.addinivalue_line("markers", "untouched: memory is as the system gives it, not poisoned")
    config.addinivalue_line("markers", "every_case: Triton's interpreter runs every case")


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
