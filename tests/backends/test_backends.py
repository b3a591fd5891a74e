"""The selection of a backend, and the error of a backend that cannot run."""

import logging
import os
import subprocess
import sys

import pytest
import torch

from snn_single_spike import SingleSpikeLeaky, backends
from snn_single_spike.functional import single_spike_leaky

CURRENT = torch.randn(5, 2, 3)

WITHOUT = """
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name in {names} else find(name, *rest)
for name in {names}:
    sys.modules[name] = None  # importing it raises
import torch
import snn_single_spike
from snn_single_spike.functional import single_spike_leaky
"""


def run(script, **environment):
    return subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
        check=False,
    )


def without(names, script):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return run(WITHOUT.format(names=names) + script, **environment)


def test_neither_triton_nor_numba_is_installed():
    """Plain torch runs, and the error of a named backend names the missing package."""
    done = without(
        ["triton", "numba"],
        "x = torch.randn(5, 2, 3, requires_grad=True)\n"
        "single_spike_leaky(x, 0.9).spikes.sum().backward()\n"
        "print(snn_single_spike.backends.select('auto', 'cpu'), x.grad.shape)\n"
        "for backend in ('triton', 'numba'):\n"
        "    try:\n"
        "        single_spike_leaky(torch.zeros(2, 1, 1), 0.9, backend=backend)\n"
        "    except RuntimeError as error:\n"
        "        print(error)\n",
    )
    assert done.returncode == 0, done.stderr
    assert "torch torch.Size([5, 2, 3])" in done.stdout
    assert "triton requires tensors on a GPU" in done.stdout
    assert "numba is not installed: pip install" in done.stdout


PLAIN_TORCH = """
import warnings
import torch
from snn_single_spike import backends, cli
from snn_single_spike.functional import single_spike_leaky
x = torch.randn(5, 2, 3, requires_grad=True)
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(2):
        single_spike_leaky(x, 0.9).spikes.sum().backward()
print(x.grad.shape, len(caught), caught[0].message)
cli.main(["info"])
try:
    single_spike_leaky(x, 0.9, backend="numba")
except RuntimeError as error:
    print("named:", error)
"""


@pytest.mark.parametrize(
    ("numba", "environment", "reason"),
    [
        (None, {"NUMBA_DISABLE_JIT": "1"}, "numba's compiler is switched off: unset NUMBA_DISABLE"),
        (
            "raise ImportError('Numba needs NumPy 2.3 or less. Got NumPy 2.9.')",
            {},
            "numba cannot be imported (ImportError: Numba needs NumPy 2.3 or less. Got NumPy 2.9.)"
            ": pip install numba --upgrade",
        ),
        ("raise OSError('libLLVM.so: no such file')", {}, "(OSError: libLLVM.so: no such file)"),
    ],
    ids=["switched off", "too old", "broken"],
)
def test_a_numba_that_cannot_compile(numba, environment, reason, tmp_path):
    """Plain torch runs with one warning, and `info` and a named backend give the reason."""
    pytest.importorskip("numba")
    if numba:
        (tmp_path / "numba.py").write_text(numba)
    paths = os.pathsep.join([str(tmp_path), *sys.path])
    done = run(PLAIN_TORCH, **os.environ | environment | {"PYTHONPATH": paths})
    assert done.returncode == 0, done.stderr
    assert "torch.Size([5, 2, 3]) 1 snn_single_spike runs plain torch" in done.stdout
    lines = [line for line in done.stdout.splitlines() if reason in line]
    starts = [
        "torch.Size",
        "backend on cpu    torch: a CPU, but",
        "  not numba",
        "named: backend='numba' cannot run",
    ]
    for line, start in zip(lines, starts, strict=True):
        assert line.startswith(start)


def test_importing_loads_no_backend_and_no_other_package():
    done = without(
        [],
        "print(sorted(name for name in ('triton', 'numba', 'matplotlib', 'sklearn', 'rich')"
        " if name in sys.modules))\n",
    )
    assert done.returncode == 0, done.stderr
    loaded = done.stdout.strip()
    alone = run(
        "import sys, torch, snntorch\nprint(sorted(name for name in "
        "('triton', 'numba', 'matplotlib', 'sklearn', 'rich') if name in sys.modules))"
    )
    assert loaded == alone.stdout.strip()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_forcing_triton_without_a_gpu_says_what_is_missing():
    pytest.importorskip("triton")
    done = without(
        [],
        "try:\n    single_spike_leaky(torch.zeros(2, 1, 1), 0.9, backend='triton')\n"
        "except RuntimeError as error:\n    print(error)\n",
    )
    assert "requires tensors on a GPU" in done.stdout
    assert "this machine has no GPU" in done.stdout
    assert "TRITON_INTERPRET=1" in done.stdout


def test_numba_refuses_tensors_elsewhere():
    pytest.importorskip("numba")
    with pytest.raises(RuntimeError, match="runs on CPU tensors"):
        backends.select("numba", "cuda")


def test_auto_says_why():
    for device in ("cpu", "cuda", "mps"):
        chosen, reason = backends.explain(device)
        assert chosen in backends.BACKENDS
        assert reason
    assert backends.explain("mps")[0] == "torch"


def test_the_chosen_backend_is_logged(caplog):
    backends.load.cache_clear()
    with caplog.at_level(logging.INFO, "snn_single_spike"):
        single_spike_leaky(CURRENT, 0.9, backend="torch")
        single_spike_leaky(CURRENT, 0.9, backend="torch")
    assert caplog.messages == ["using backend torch for neuron"]


def test_module_passes_its_backend_on(monkeypatch):
    seen = []
    select = backends.select
    monkeypatch.setattr(backends, "select", lambda *a: seen.append(a) or select(*a))
    SingleSpikeLeaky(0.9, backend="torch")(CURRENT)
    assert seen == [("torch", "cpu")]


def test_a_forked_process_gets_threads_of_its_own():
    pytest.importorskip("numba")
    script = """
import os, torch
from snn_single_spike.functional import single_spike_leaky
torch.set_num_threads(2)
x = torch.randn(100, 8, 1000)
expected = single_spike_leaky(x, 0.9, backend="numba").times
child = os.fork()
if child == 0:
    os._exit(0 if torch.equal(single_spike_leaky(x, 0.9, backend="numba").times, expected) else 1)
print("child", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = run(script, **os.environ)
    assert "child 0" in done.stdout, done.stderr


def test_a_thread_that_outlives_the_main_thread():
    pytest.importorskip("numba")
    script = """
import threading, time, torch
from snn_single_spike.functional import single_spike_leaky
torch.set_num_threads(2)
x = torch.randn(100, 8, 1000)
expected = single_spike_leaky(x, 0.9, backend="numba").times
def late():
    time.sleep(0.5)
    print("late", torch.equal(single_spike_leaky(x, 0.9, backend="numba").times, expected))
threading.Thread(target=late).start()
"""
    done = run(script, **os.environ)
    assert "late True" in done.stdout, done.stderr


def test_many_threads_at_once(cpu_backend):
    """Autograd and DataParallel call from several Python threads."""
    from concurrent.futures import ThreadPoolExecutor

    inputs = [torch.randn(40, 4, 1000) for _ in range(8)]
    expected = [single_spike_leaky(x, 0.9, backend=cpu_backend) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda x: single_spike_leaky(x, 0.9, backend=cpu_backend), inputs))
    for mine, right in zip(results, expected, strict=True):
        assert torch.equal(mine.spikes, right.spikes)
        assert torch.equal(mine.mem, right.mem)
