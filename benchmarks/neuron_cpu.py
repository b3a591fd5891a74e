"""One neuron layer on the CPU, forward and backward, against snn.Leaky in its time loop.

    python benchmarks/neuron_cpu.py [--threads 1 2] [--out results.json]

The peer is used well: over `unbind(0)`, whose backward is O(T) (indexing `x[t]` makes it
O(T^2)). Both allocate all they return. Runs take turns in one process, outputs are checked
before anything is timed, and peak memory is that of a process which does one thing only
(read from /proc, so on Linux).
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import snntorch as snn
import torch
from torch import Tensor

from snn_single_spike import SingleSpikeLeaky, backends

import machine

Step = Callable[[Tensor, Tensor], Tensor]


def loop(record_mem: bool) -> Step:
    """snn.Leaky as its tutorials have it, recording the spikes, or spikes and membrane."""
    lif = snn.Leaky(beta=0.9)

    def step(current: Tensor, grad: Tensor) -> Tensor:
        mem, spikes, mems = lif.reset_mem(), [], []
        for x in current.unbind(0):
            spk, mem = lif(x, mem)
            spikes.append(spk)
            if record_mem:
                mems.append(mem)
        out = torch.stack(spikes), torch.stack(mems) if record_mem else None
        out[0].backward(grad)
        return out[0]

    return step


def single_spike(record_mem: bool, **options: str) -> Step:
    lif = SingleSpikeLeaky(beta=0.9, init_hidden=not record_mem, **options)

    def step(current: Tensor, grad: Tensor) -> Tensor:
        out = lif(current) if record_mem else (lif(current), None)
        out[0].backward(grad)
        return out[0]

    return step


RECORDS = {"spikes": False, "spikes and membrane": True}
BACKENDS = [name for name in ("numba", "torch") if not backends.missing(name, "cpu")]
PEER = "snn.Leaky loop"


def contestants(record_mem: bool) -> dict[str, Step]:
    """Who takes part; all return the same."""
    ours = {f"single spike, {name}": single_spike(record_mem, backend=name) for name in BACKENDS}
    ramp = single_spike(record_mem, gradient="straight_through")
    return {PEER: loop(record_mem)} | ours | {"single spike, straight_through": ramp}


def data(steps: int, batch: int, neurons: int) -> tuple[Tensor, Tensor]:
    make = torch.Generator().manual_seed(0)
    current = torch.randn(steps, batch, neurons, generator=make) * 0.3
    return current.requires_grad_(), torch.randn(steps, batch, neurons, generator=make)


def check(steps: dict[str, Step], current: Tensor, grad: Tensor) -> None:
    """First spikes must be the loop's before a time means anything."""
    spikes = steps[PEER](current, grad) > 0
    first = spikes & (spikes.cumsum(0) == 1)
    for name, step in steps.items():
        if name != PEER:
            assert torch.equal(step(current, grad) > 0, first), name


def measure(shape: list[int], record: str, threads: int, repeats: int) -> dict[str, dict]:
    torch.set_num_threads(threads)
    current, grad = data(*shape)
    steps = contestants(RECORDS[record])
    check(steps, current, grad)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(repeats):
        for name, step in steps.items():
            current.grad = None
            start = time.perf_counter()
            step(current, grad)
            seconds[name].append(time.perf_counter() - start)
    results = {}
    for name, mine in seconds.items():
        ratios = sorted(theirs / ours for theirs, ours in zip(seconds[PEER], mine, strict=True))
        results[name] = {
            "ms": 1e3 * statistics.median(mine),
            "speedup": statistics.median(ratios),
            "speedup_10_90": [ratios[len(ratios) // 10], ratios[-1 - len(ratios) // 10]],
            # The lowest of three: what the C library keeps of freed memory varies.
            "peak_mb": min(peak(name, record, shape, threads) for _ in range(3)),
        }
    return results


def peak(name: str, record: str, shape: list[int], threads: int) -> float:
    """Peak memory of one step above what its process held before it, in MB."""
    options = ["--threads", str(threads), "--shape", *map(str, shape)]
    done = subprocess.run(
        [sys.executable, __file__, "--peak", name, record, *options],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


def own_peak(name: str, record: str, shape: list[int]) -> float:
    step = contestants(RECORDS[record])[name]
    step(*data(2, 4, 64))  # compile first
    current, grad = data(*shape)
    ctypes.CDLL(None).malloc_trim(0)  # free memory that is still resident would hide growth
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again here
    before = resident("VmRSS")
    step(current, grad)
    return (resident("VmHWM") - before) / 1024


def resident(field: str) -> int:
    """A field of /proc/self/status, in kB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--shape", type=int, nargs=3, default=[100, 128, 1000], metavar=("T", "B", "N")
    )
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak:
        torch.set_num_threads(options.threads[0])
        print(own_peak(*options.peak, options.shape))
        return
    steps, batch, neurons = options.shape
    results: dict[str, dict] = {}
    for threads in options.threads:
        for record in RECORDS:
            measured = measure(options.shape, record, threads, options.repeats)
            results[f"{threads} threads, {record}"] = measured
            print(f"\nT={steps}, B={batch}, N={neurons}, {threads} thread(s), returning {record}")
            print(f"{'':34s}{'ms':>8s}{'speed-up':>10s}{'(10-90 %)':>14s}{'peak MB':>9s}")
            for name, row in measured.items():
                low, high = row["speedup_10_90"]
                print(
                    f"{name:34s}{row['ms']:8.1f}{row['speedup']:9.2f}x"
                    f"{f'{low:.2f}-{high:.2f}':>14s}{row['peak_mb']:9.0f}"
                )
    if options.out:
        figures = {"machine": machine.describe(), "shape": options.shape, "results": results}
        options.out.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
