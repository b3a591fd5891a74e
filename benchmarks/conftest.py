"""Options of the benchmarks, the copy speed of the machine, and the baselines of ratios.

    python -m pytest benchmarks                      quick subset; fails where the ratios fell
    python -m pytest benchmarks --full --benchmark-json=FILE
    python -m pytest benchmarks --update-baselines
    python -m pytest benchmarks/suite/bench_times.py --data DIR      with the spikes of real images

A baseline is a ratio to a peer in the same run, never a time. A run fails if the ratios to all
peers of a contest fell. If the ratio to one peer falls alone, this peer became faster: the loop of
snnTorch takes 47 or 76 ms in the same test, depending on where its memory comes from.

Baselines belong to one kind of machine (``baselines/*.json``). A baseline is the lowest ratio of
several runs of the same code, so update the baselines in several runs. If the code became faster,
delete the old baseline first. Without baselines for this machine the run prints that nothing was
compared.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch

from benchmarks.harness import machine
from benchmarks.harness.race import CLOCK, Contestant, Ratio, Stopwatch, race, report

BASELINES = Path(__file__).parent / "baselines"
FALL = 0.8  # a ratio below this fraction of its baseline fails
# Seconds before each attempt: another process slows the machine for a while, a regression always.
PAUSES = (0, 5, 30)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("snn-single-spike")
    group.addoption("--full", action="store_true", help="the whole grid, not the quick subset")
    group.addoption("--rounds", type=int, default=9, help="number of rounds")
    group.addoption("--threads", type=int, help="CPU threads (default: torch's)")
    group.addoption("--data", type=Path, help="folder with Fashion-MNIST (default: random codes)")
    group.addoption("--update-baselines", action="store_true", help="store this run's ratios")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--threads"):
        torch.set_num_threads(config.getoption("--threads"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in list(items):
        item.add_marker(pytest.mark.benchmark(timer=CLOCK))
        if item.get_closest_marker("full") and not config.getoption("--full"):
            items.remove(item)


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict) -> None:
    machine_info.clear()  # removes the name of the host
    machine_info |= machine.describe()


@pytest.fixture(scope="session")
def device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="session")
def data(request: pytest.FixtureRequest) -> Path | None:
    return request.config.getoption("--data")


@pytest.fixture(scope="session")
def copy_speed(device: str) -> float:
    """Bytes per second of a copy into allocated memory, counting bytes read and written."""
    source = torch.empty(1 << (28 if device == "cuda" else 24), device=device)
    target = torch.empty_like(source)
    watch = Stopwatch(device)
    copy = Contestant(lambda _: target.copy_(source))
    return 2 * source.nbytes / min(watch.time(copy) for _ in range(7))


class Baselines:
    """The baselines of this kind of machine, by test and peer."""

    def __init__(self, update: bool) -> None:
        self.update = update
        self.kind = machine.kind()
        self.path = BASELINES / (re.sub(r"[^a-z0-9]+", "-", self.kind.lower()).strip("-") + ".json")
        self.known = json.loads(self.path.read_text())["ratios"] if self.path.exists() else {}
        self.seen: dict[str, dict[str, float]] = {}

    def fallen(self, test: str, ratios: Mapping[str, Ratio]) -> dict[str, str]:
        """The ratios, if each of them is more than a fifth below its baseline."""
        # The lower end of the spread: a run of the same code on a busy machine reaches it, too.
        self.seen[test] = {name: round(ratio.low, 3) for name, ratio in ratios.items()}
        if self.update:
            return {}
        known = self.known.get(test, {})
        compared = {name: ratio.median for name, ratio in ratios.items() if name in known}
        if any(ratio >= FALL * known[name] for name, ratio in compared.items()):
            return {}
        return {
            name: f"{ratio:.2f}x, baseline {known[name]:.2f}x" for name, ratio in compared.items()
        }

    def store(self) -> None:
        ratios = dict(sorted((self.known | self.seen).items()))
        for test, peers in self.known.items():
            for name in ratios[test].keys() & peers.keys():
                ratios[test][name] = min(ratios[test][name], peers[name])
        contents = {"machine": self.kind, "ratios": ratios}
        self.path.parent.mkdir(exist_ok=True)
        self.path.write_text(json.dumps(contents, indent=1) + "\n")


@pytest.fixture(scope="session")
def baselines(request: pytest.FixtureRequest) -> Iterator[Baselines]:
    baselines = Baselines(request.config.getoption("--update-baselines"))
    yield baselines
    if baselines.update and baselines.seen:
        baselines.store()
    elif not baselines.known:
        print(f"\nno baselines for {baselines.kind!r}: nothing was compared (--update-baselines)")


@pytest.fixture
def compare(benchmark, request: pytest.FixtureRequest, device: str, baselines: Baselines):
    """Race our implementation against peers, report the ratios, and fail if all ratios fell."""

    def run(
        ours: Contestant,
        peers: Mapping[str, Contestant],
        computes: Mapping[str, str] | None = None,
        steady: bool = False,
        **facts: object,
    ) -> dict[str, Ratio]:
        rounds = request.config.getoption("--rounds")
        for pause in PAUSES:
            time.sleep(pause)
            seconds, ratios = race(ours, peers, rounds, device, steady=steady)
            fallen = baselines.fallen(request.node.name, ratios)
            if not fallen:
                break
        report(benchmark, seconds)
        benchmark.extra_info |= facts | {"threads": torch.get_num_threads()}
        benchmark.extra_info["peers"] = {
            name: ratio._asdict() | {"computes": (computes or {}).get(name, "")}
            for name, ratio in ratios.items()
        }
        if fallen:
            pytest.fail(f"slower than the baseline, {len(PAUSES)} times in a row: {fallen}")
        return ratios

    return run
