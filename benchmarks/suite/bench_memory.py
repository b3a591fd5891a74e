"""Peak memory of one training step, above the memory of its process before the step.

Each measurement runs in a new process. On Linux it is the growth of the resident set, on a GPU the
memory that torch allocated.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from snn_single_spike import SpikeTimes

from benchmarks.harness.networks import (
    CLASSES,
    HIDDEN,
    INPUTS,
    OURS,
    SingleSpikeNet,
    latency_codes,
    leaky_loop,
    networks,
    same_weights,
)
from benchmarks.harness.race import Ratio

TIMES = {"masked": "from spike times", "spike_time": "from spike times, spike_time rule"}
STATUS = Path("/proc/self/status")


def resident(field: str) -> int:
    """A field of /proc/self/status, in kB."""
    return next(
        int(line.split()[1]) for line in STATUS.read_text().splitlines() if line.startswith(field)
    )


def step(name: str, what: str, num_steps: int, batch: int):
    """One training step of the whole network, or of its neurons alone."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    targets = torch.arange(batch, device=device) % CLASSES
    for rule, times in TIMES.items():
        if name == times:
            net = same_weights(SingleSpikeNet("times", rule)).to(device)
            spikes = SpikeTimes(torch.randint(num_steps, (batch, INPUTS)), num_steps).to(device)
            if what == "inference":
                return lambda: infer(net, spikes)
            return lambda: torch.nn.functional.cross_entropy(net(spikes), targets).backward()
    model = networks(device)[name]
    if what == "network":
        x = latency_codes(num_steps, batch, device)
        return lambda: torch.nn.functional.cross_entropy(model(x), targets).backward()
    x = torch.randn(num_steps, batch, HIDDEN, device=device).mul_(0.3).requires_grad_()
    grad = torch.randn_like(x)
    if name == OURS["dense"]:
        return lambda: model.lif1(x).backward(grad)

    return lambda: leaky_loop(model.lif1, x).backward(grad)


@torch.no_grad()
def infer(net: torch.nn.Module, spikes: SpikeTimes) -> None:
    net(spikes)


def own_peak(name: str, what: str, num_steps: int, batch: int) -> float:
    """MB, of this process."""
    step(name, what, 2, 2)()  # compile first
    run = step(name, what, num_steps, batch)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    ctypes.CDLL(None).malloc_trim(0)  # free memory that stays resident would hide growth
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = resident("VmRSS")
    run()
    return (resident("VmHWM") - before) / 1024


def peak(name: str, what: str, num_steps: int, batch: int) -> float:
    """MB of a new process; the lowest of three, because the C library keeps varying amounts."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.suite.bench_memory",
        name,
        what,
        str(num_steps),
        str(batch),
    ]
    command.append(str(torch.get_num_threads()))
    runs = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(3)]
    return min(float(run.stdout) for run in runs)


@pytest.mark.skipif(
    not (STATUS.exists() or torch.cuda.is_available()), reason="memory is read from /proc"
)
@pytest.mark.parametrize("what", ["neurons", "network"])
@pytest.mark.parametrize(
    ("num_steps", "batch"),
    [(100, 128), *(pytest.param(t, 128, marks=pytest.mark.full) for t in (25, 300))],
)
def bench_memory(what: str, num_steps: int, batch: int, benchmark, baselines, request) -> None:
    names = [OURS["dense"], "snn.Leaky loop"]
    if what == "network":
        names += [OURS["fused"], "snn.Leaky loop, linear layers outside"]
    peaks = {name: peak(name, what, num_steps, batch) for name in names}
    benchmark.extra_info |= {
        "cell": {"num_steps": num_steps, "batch": batch, "what": what},
        "peak_mb": peaks,
    }
    benchmark.pedantic(lambda: None)
    # The memory of the loop varies with the blocks that the C library keeps.
    ratio = num_steps * batch * HIDDEN * 4 / 2**20 / peaks[OURS["dense"]]
    one = Ratio(ratio, ratio, ratio, 0.0)
    fallen = baselines.fallen(request.node.name, {"one tensor (T, B, 1000)": one})
    assert not fallen, f"more memory than it took, against {fallen}"


@pytest.mark.skipif(
    not (STATUS.exists() or torch.cuda.is_available()), reason="memory is read from /proc"
)
@pytest.mark.parametrize(
    ("rule", "what"),
    [
        ("spike_time", "network"),
        ("masked", "inference"),
        pytest.param("masked", "network", marks=pytest.mark.full),
        pytest.param("spike_time", "inference", marks=pytest.mark.full),
    ],
)
def bench_memory_from_times(rule: str, what: str, benchmark, request) -> None:
    """Peak memory over T of a training step and of inference, both from spike times."""
    full = request.config.getoption("--full")
    sizes = (100, 300, 1000, 3000) if full else (100, 1000)
    peaks = {num_steps: peak(TIMES[rule], what, num_steps, 128) for num_steps in sizes}
    benchmark.extra_info |= {"cell": {"what": what, "rule": rule}, "peak_mb": peaks}
    benchmark.pedantic(lambda: None)
    if rule == "spike_time" or what == "inference":
        assert max(peaks.values()) < 1.25 * min(peaks.values()) + 4, peaks


if __name__ == "__main__":
    _, name, what, num_steps, batch, threads = sys.argv
    torch.set_num_threads(int(threads))
    print(own_peak(name, what, int(num_steps), int(batch)))
