"""Threads of the compiled CPU loops: torch's own team, or Python threads."""

import subprocess
import sys
import threading
import time

import pytest
import torch

pytest.importorskip("numba")

from snn_single_spike.backends.numba import _threads

from tests.support.faults import FORK, needs_fork

KINDS = ["torch's team", "Python threads"]


@pytest.fixture(params=KINDS)
def in_threads(request, monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    if request.param == "Python threads":
        monkeypatch.setattr(_threads, "_openmp", lambda: None)
    elif _threads._openmp() is None:
        pytest.skip("torch has no OpenMP here")
    yield _threads.in_threads
    torch.set_num_threads(before)


def test_the_team_of_torch_is_found_where_torch_uses_openmp():
    if sys.platform != "linux" or "OpenMP" not in torch.__config__.parallel_info():
        pytest.skip("torch has no OpenMP here")
    assert _threads._openmp() is not None


@pytest.mark.parametrize("calls", [0, 1, 2, 3, 40])
def test_every_call_runs_once(in_threads, calls):
    done = []
    in_threads(lambda *arguments: done.append(arguments), [(i, str(i)) for i in range(calls)])
    assert sorted(done) == [(i, str(i)) for i in range(calls)]


def test_several_threads_share_the_calls(in_threads):
    meet = threading.Barrier(3, timeout=20)  # breaks unless three threads wait at once
    seen = set()

    def kernel(_):
        seen.add(threading.get_ident())
        meet.wait()

    in_threads(kernel, [(i,) for i in range(3)])
    assert len(seen) == 3


@pytest.mark.parametrize("error", [ValueError("of a call"), KeyboardInterrupt()], ids=type)
def test_the_error_of_a_call_is_raised(in_threads, error):
    def kernel(i):
        if i == 5:
            raise error
        time.sleep(0.001)

    with pytest.raises(type(error)) as raised:
        in_threads(kernel, [(i,) for i in range(10)])
    assert raised.value is error


def test_calls_from_several_threads_at_once(in_threads):
    totals = [0] * 4

    def caller(k):
        def kernel(i):
            totals[k] += i

        in_threads(kernel, [(i,) for i in range(50)])

    callers = [threading.Thread(target=caller, args=(k,)) for k in range(4)]
    for each in callers:
        each.start()
    for each in callers:
        each.join(20)
    assert totals == [1225] * 4


def test_calls_inside_of_a_call(in_threads):
    done = []

    def outer(i):
        in_threads(lambda j: done.append((i, j)), [(j,) for j in range(4)])

    in_threads(outer, [(i,) for i in range(4)])
    assert sorted(done) == [(i, j) for i in range(4) for j in range(4)]


@needs_fork
def test_a_forked_process_uses_python_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        _threads.in_threads(time.sleep, [(0.001,)] * 2)  # torch's team is running
        here, there = FORK.Pipe()

        def run():
            done = []
            _threads.in_threads(done.append, [(i,) for i in range(4)])
            there.send(sorted(done))

        process = FORK.Process(target=run)
        process.start()
        assert here.poll(20)
        assert here.recv() == [0, 1, 2, 3]
        process.join()
    finally:
        torch.set_num_threads(before)


def test_calls_while_the_interpreter_ends():
    program = """
import torch
from snn_single_spike.backends.numba._threads import in_threads

torch.set_num_threads(2)

class Last:
    def __del__(self, in_threads=in_threads):
        in_threads(print, [("one",), ("two",)])

last = Last()
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=100
    )
    assert ended.returncode == 0, ended.stderr
    assert sorted(ended.stdout.split()) == ["one", "two"]
