"""Compares run times: contestants take turns in one process, round by round.

The speed of a machine drifts, but two consecutive runs drift alike. The result is the median over
rounds of the ratio of a peer's time to ours, and the spread of the ratio. pytest-benchmark receives
our times afterwards. The benchmarks check outputs before any timing.

On a GPU, events time a run after a flush of the cache.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch

# If a run takes less, a turn is the mean of several runs, because an interruption by the system is
# longer than a short run.
TURN_SECONDS = 5e-3
# A peer that takes longer than this in total skips later rounds.
PEER_SECONDS = 8.0
LEAST_ROUNDS = 3


class Contestant(NamedTuple):
    """A contestant: ``run(prepare())`` is one run. Only ``run`` is timed."""

    run: Callable[[Any], Any]
    prepare: Callable[[], Any] = lambda: None


class Clock:
    """A timer for pytest-benchmark that returns times measured before."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


CLOCK = Clock()


class Stopwatch:
    """Measures the seconds of one run on a device."""

    def __init__(self, device: str) -> None:
        self.cache = None
        if device == "cuda":
            # More than the second-level cache of any GPU
            self.cache = torch.empty(1 << 28, dtype=torch.int8, device=device)

    def time(self, contestant: Contestant) -> float:
        state = contestant.prepare()
        if self.cache is None:
            start = time.perf_counter()
            contestant.run(state)
            return time.perf_counter() - start
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.cache.zero_()
        begin.record()
        contestant.run(state)
        end.record()
        end.synchronize()
        return 1e-3 * begin.elapsed_time(end)


class Ratio(NamedTuple):
    """The time of a peer divided by ours: median over the rounds, and spread."""

    median: float
    low: float
    """10th percentile over the rounds."""
    high: float
    """90th percentile."""
    peer_ms: float

    @staticmethod
    def of(theirs: list[float], ours: list[float]) -> Ratio:
        # A peer that skipped rounds is compared in its rounds only.
        ratios = sorted(peer / mine for peer, mine in zip(theirs, ours, strict=False))
        tenth = len(ratios) // 10
        return Ratio(
            statistics.median(ratios),
            ratios[tenth],
            ratios[-1 - tenth],
            1e3 * statistics.median(theirs),
        )


class Race(NamedTuple):
    ours: list[float]
    """Seconds, one for each round."""
    ratios: dict[str, Ratio]


def race(
    ours: Contestant,
    peers: Mapping[str, Contestant],
    rounds: int,
    device: str = "cpu",
    *,
    steady: bool = False,
) -> Race:
    """Time our contestant and every peer in turns.

    If ``steady``, every turn begins with a run that is not timed: in a training, a step follows
    another one of the same network, with its memory at hand.
    """
    watch = Stopwatch(device)

    def runs(contestant: Contestant) -> int:
        watch.time(contestant)  # compile, fill caches
        return max(1, round(TURN_SECONDS / max(watch.time(contestant), 1e-6)))

    def turn(contestant: Contestant, count: int) -> float:
        if steady:
            watch.time(contestant)
        return statistics.fmean(watch.time(contestant) for _ in range(count))

    counts = {name: runs(peer) for name, peer in peers.items()}
    count = runs(ours)
    theirs: dict[str, list[float]] = {name: [] for name in peers}
    mine: list[float] = []
    for _ in range(rounds):
        for name, peer in peers.items():
            if len(theirs[name]) < LEAST_ROUNDS or sum(theirs[name]) < PEER_SECONDS:
                theirs[name].append(turn(peer, counts[name]))
        mine.append(turn(ours, count))
    return Race(mine, {name: Ratio.of(seconds, mine) for name, seconds in theirs.items()})


def report(benchmark: Any, seconds: list[float]) -> None:
    """Pass the measured seconds to pytest-benchmark, whose timer is :data:`CLOCK`."""
    samples = iter(seconds)

    def replay() -> None:
        CLOCK.now += next(samples)

    benchmark.pedantic(replay, rounds=len(seconds))
