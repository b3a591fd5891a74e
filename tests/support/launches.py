"""Records launches in the interpreter, and compiles them in a process without it.

`compiled.py` compiles the variants whose instructions matter, with signatures written by hand.
This module compiles the arguments that the launchers really pass: sizes of 1, which are compiled
in, absent tensors, unaligned tensors, float64.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton.language as tl
from triton.runtime import driver, interpreter

from tests.support.compiled import TARGETS, Facts, facts_of

TARGET = TARGETS["sm_90"]


@dataclass(frozen=True)
class Pointer:
    """The properties of a tensor that a kernel is compiled for."""

    dtype: torch.dtype
    aligned: bool

    def data_ptr(self) -> int:
        return 0 if self.aligned else 1

    def ptr_range(self) -> int:
        return 0


class Launch(NamedTuple):
    module: str
    kernel: str
    arguments: tuple[tuple[str, Any], ...]
    """Arguments that exist at run time, by name."""
    constants: tuple[tuple[str, Any], ...]
    """Arguments and options of the compiler that are compiled in, by name."""

    def specialization(self) -> tuple[Any, ...]:
        """The same for two launches that share one compiled kernel."""
        arguments = tuple((name, _kind(value)) for name, value in self.arguments)
        return self.module, self.kernel, arguments, self.constants


def _launch(kernel: interpreter.InterpretedFunction, args: Any, kwargs: Any) -> Launch:
    """A launch, whether its arguments were given by position or by name."""
    named = {**dict(zip(kernel.arg_names, args, strict=False)), **kwargs}
    compiled_in = {
        name
        for name in named
        if name not in kernel.arg_names or kernel.fn.__annotations__.get(name) is tl.constexpr
    }
    arguments, constants = [], []
    for name, value in sorted(named.items()):
        (constants if name in compiled_in else arguments).append((name, _picklable(value)))
    return Launch(kernel.fn.__module__, kernel.fn.__name__, tuple(arguments), tuple(constants))


def _picklable(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return Pointer(value.dtype, value.data_ptr() % 16 == 0)
    return value.name if isinstance(value, tl.dtype) else value


def _kind(value: Any) -> Any:
    """The compiler's view of an argument that is not compiled in."""
    if isinstance(value, float):
        return float
    if isinstance(value, int):
        return int, value == 1, value % 16 == 0, abs(value) < 2**31
    return value


@contextlib.contextmanager
def recorded() -> Iterator[dict[tuple[Any, ...], Launch]]:
    """Records launches, one of each specialization."""
    launches: dict[tuple[Any, ...], Launch] = {}
    run = interpreter.InterpretedFunction.run

    def record(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        launch = _launch(self, args, kwargs)
        launches.setdefault(launch.specialization(), launch)
        return run(self, *args, grid=grid, warmup=warmup, **kwargs)

    interpreter.InterpretedFunction.run = record
    try:
        yield launches
    finally:
        interpreter.InterpretedFunction.run = run


def a_few_of_each(launches: Iterable[Launch]) -> list[Launch]:
    """Two launches of each kernel: the one with fewest arguments, and the one with most."""
    by_kernel: dict[str, list[Launch]] = {}
    for launch in launches:
        by_kernel.setdefault(launch.kernel, []).append(launch)
    few: list[Launch] = []
    for of_kernel in by_kernel.values():
        of_kernel.sort(key=lambda launch: len(launch.arguments))
        few += {id(launch): launch for launch in (of_kernel[0], of_kernel[-1])}.values()
    return few


def compile_launches(launches: list[Launch]) -> list[Facts]:
    """Compile each launch for the target."""
    with tempfile.TemporaryDirectory() as folder:
        given, result = Path(folder, "launches.pickle"), Path(folder, "facts.pickle")
        given.write_bytes(pickle.dumps([tuple(launch) for launch in launches]))
        environment = os.environ | {"TRITON_INTERPRET": "0"}
        command = [sys.executable, "-m", "tests.support.launches", str(given), str(result)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if done.returncode:
            raise RuntimeError(f"compiling the launches failed:\n{done.stderr[-10_000:]}")
        return [Facts(**facts) for facts in pickle.loads(result.read_bytes())]


class _Driver:
    """A driver whose current device is the target; it launches nothing."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> Any:
        return TARGET


def _compile(launch: Launch) -> dict[str, Any]:
    driver.set_active(_Driver())
    kernel = getattr(importlib.import_module(launch.module), launch.kernel)
    constants = {
        name: tl.dtype(value) if name == "STATE" else value for name, value in launch.constants
    }
    try:
        binary = kernel.run(grid=(1,), warmup=True, **dict(launch.arguments), **constants)
    except Exception as error:
        raise RuntimeError(f"{launch} does not compile") from error
    return asdict(facts_of(binary, TARGET))


def main() -> None:
    given, result = map(Path, sys.argv[1:])
    launches = [Launch(*launch) for launch in pickle.loads(given.read_bytes())]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        result.write_bytes(pickle.dumps(list(pool.map(_compile, launches))))


if __name__ == "__main__":
    main()
