"""Workers that are killed, and processes and threads that compile at once."""

import os
import random
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.utils.data import DataLoader

from snn_single_spike import SingleSpikeLinear, SpikeTimes

from tests.support.faults import kill_after, needs_fork, result_of, start

pytestmark = pytest.mark.faults


class Recordings(torch.utils.data.Dataset):
    """Spike times; a worker that loads sample 20 is killed, if `deadly`."""

    def __init__(self, deadly):
        self.deadly = deadly

    def __len__(self):
        return 40

    def __getitem__(self, index):
        if self.deadly and index == 20:
            os.kill(os.getpid(), signal.SIGKILL)
        return SpikeTimes(torch.full((1, 30), index % 10), 10)


@needs_fork
def test_a_worker_of_a_loader_that_is_killed():
    layer = SingleSpikeLinear(30, 8, 0.9)

    def epoch(deadly):
        loader = DataLoader(Recordings(deadly), batch_size=8, num_workers=2)
        return sum(layer(spikes).to_dense().sum().item() for spikes in loader)

    expected = epoch(False)
    with pytest.raises(RuntimeError, match="DataLoader worker .* (killed|exited unexpectedly)"):
        epoch(True)
    assert epoch(False) == expected


def compile_and_call(folder, threads):
    import numba

    from snn_single_spike.kernels.numba.compiling import compiled

    def add_one(x):
        return x + 1

    numba.config.CACHE_DIR = str(folder)
    loop = compiled(add_one)
    with ThreadPoolExecutor(threads) as pool:
        results = list(pool.map(loop, [1, 1.5] * threads))
    return results, sum(loop.stats.cache_hits.values())


@needs_fork
def test_processes_and_threads_that_compile_at_once(tmp_path):
    pytest.importorskip("numba")
    together = [start(compile_and_call, tmp_path, 3) for _ in range(6)]
    for each in together:
        results, _ = result_of(*each)
        assert results == [2, 2.5] * 3


@needs_fork
def test_processes_that_are_killed_while_they_compile(tmp_path):
    pytest.importorskip("numba")
    moments = random.Random(0)
    for _ in range(8):
        process, _ = start(compile_and_call, tmp_path, 1)
        kill_after(moments.uniform(0, 0.4), process)
    for _ in range(2):
        results, hits = result_of(*start(compile_and_call, tmp_path, 1))
        assert results == [2, 2.5]
    assert hits == 2
