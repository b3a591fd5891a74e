"""Figures and tables of the README, from the results of the benchmarks.

    python -m pytest benchmarks --full --benchmark-json=FILE
    python -m benchmarks.harness.figures FILE [FILE ...]

The script writes two figures into ``benchmarks/figures/``, and prints every ratio as Markdown.
``speedup.png`` shows speed-ups over time steps and widths, as in arXiv:2205.15286. ``roofline.png``
shows the bandwidth that the neuron reaches.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

FIGURES = Path(__file__).parents[1] / "figures"
LOOP = "snn.Leaky loop"


def sweep(results: list[dict[str, Any]]) -> dict[tuple[int, int], dict[int, dict[str, Any]]]:
    """Results of the neuron alone in float32, by (batch, neurons) and then by time steps."""
    found: dict[tuple[int, int], dict[int, dict[str, Any]]] = defaultdict(dict)
    for result in results:
        info = result["extra_info"]
        cell = info.get("cell", {})
        plain = cell.get("direction") == "both" and not cell["learned"]
        if plain and cell["dtype"] == "float32":
            found[cell["batch"], cell["neurons"]][cell["num_steps"]] = result
    return {key: dict(sorted(cells.items())) for key, cells in sorted(found.items())}


def peers_of(cells: dict[int, dict[str, Any]]) -> list[str]:
    names = {name for result in cells.values() for name in result["extra_info"]["peers"]}
    return sorted(names, key=lambda name: (name != LOOP, name))


def draw_speedup(results: list[dict[str, Any]], title: str) -> None:
    panels = {key: cells for key, cells in sweep(results).items() if len(cells) > 3}
    columns = 2  # legible in the width of a page
    rows = len(panels) // columns + 1  # the last panel has the names
    figure, axes = plt.subplots(
        rows, columns, figsize=(3.7 * columns, 2.6 * rows), sharey=True, squeeze=False
    )
    colors: dict[str, Any] = {}
    for axis, ((batch, neurons), cells) in zip(axes.flat, panels.items(), strict=False):
        for name in peers_of(cells):
            points = [
                (num_steps, peer["median"], peer["low"], peer["high"])
                for num_steps, result in cells.items()
                if (peer := result["extra_info"]["peers"].get(name))
            ]
            num_steps, medians, lows, highs = zip(*points, strict=True)
            color = colors.setdefault(name, plt.get_cmap("tab20").colors[2 * len(colors) % 19])
            axis.plot(num_steps, medians, marker="o", ms=3, color=color, label=name)
            axis.fill_between(num_steps, lows, highs, color=color, alpha=0.2, lw=0)
        axis.axhline(1, color="black", lw=0.8, ls=":")
        axis.set(title=f"{neurons} neurons, batch {batch}", xscale="log", yscale="log")
        steps = [step for step in cells if step & (step - 1) == 0]  # labels of others overlap
        axis.set_xticks(steps, map(str, steps), fontsize=8)
        axis.minorticks_off()
        axis.set_xlabel("time steps")
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for row in axes:
        row[0].set_ylabel("their time / ours")
    handles = [plt.Line2D([], [], color=color, label=name) for name, color in colors.items()]
    axes.flat[-1].legend(handles=handles, loc="center", fontsize=8, frameon=False)
    figure.suptitle(f"One layer of neurons, forward and backward, float32\n{title}", fontsize=10)
    figure.tight_layout()
    figure.savefig(FIGURES / "speedup.png", dpi=130)


def draw_roofline(results: list[dict[str, Any]], title: str) -> None:
    figure, axis = plt.subplots(figsize=(6, 3.8))
    copy = 0.0
    for (batch, neurons), cells in sweep(results).items():
        sizes, speeds = [], []
        for result in cells.values():
            info = result["extra_info"]
            copy = info["copy_speed"]
            sizes.append(info["bytes"] / 5)
            speeds.append(1e-9 * info["bytes"] / result["stats"]["median"])
        axis.plot(sizes, speeds, marker="o", ms=3, label=f"{neurons} neurons, batch {batch}")
    axis.axhline(1e-9 * copy, color="black", lw=0.8, ls=":", label="copy of a large tensor")
    axis.set(xscale="log", yscale="log", xlabel="bytes of one (T, B, N) tensor", ylabel="GB/s")
    axis.set_title(f"Bytes that must move over time, forward and backward\n{title}", fontsize=9)
    axis.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(FIGURES / "roofline.png", dpi=130)


def table(results: list[dict[str, Any]]) -> str:
    lines = ["| benchmark | ours, ms | peer | their time / ours (10-90 %) |", "|---|--:|---|--:|"]
    for result in results:
        ours = 1e3 * result["stats"]["median"]
        for name, peer in result["extra_info"].get("peers", {}).items():
            spread = f"{peer['median']:.2f} ({peer['low']:.2f}-{peer['high']:.2f})"
            lines.append(f"| {result['name']} | {ours:.3g} | {name} | {spread} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, nargs="+", help="what --benchmark-json wrote")
    options = parser.parse_args()
    results: list[dict[str, Any]] = []
    for path in options.results:
        try:
            contents = json.loads(path.read_text())
            results += contents["benchmarks"]
        except (OSError, ValueError, KeyError) as error:
            parser.error(f"{path} is not a result of pytest-benchmark: {error!r}")
    machine, threads = contents["machine_info"], {r["extra_info"].get("threads") for r in results}
    on = machine.get("gpu") or f"{machine['processor']}, {max(threads - {None})} threads"
    title = f"{on}, torch {machine['torch']}"
    FIGURES.mkdir(exist_ok=True)
    if any(len(cells) > 3 for cells in sweep(results).values()):
        draw_speedup(results, title)
        draw_roofline(results, title)
    print(f"{title}\n\n{table(results)}")


if __name__ == "__main__":
    main()
