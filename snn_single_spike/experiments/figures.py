"""Figures of a report, as PNG."""

from __future__ import annotations

import textwrap
from io import BytesIO
from typing import Any

from matplotlib.figure import Figure

from .runs import Group

_RASTERS = 4  # at most, side by side
_HALF_A_ROW = 60  # characters of a legend
# Every ten groups the colors repeat, with the next line and marker
_LINES, _MARKERS = ("-", "--", ":"), ("o", "^", "s")


def curves(groups: list[Group]) -> bytes:
    """Test accuracy over epochs (mean and extremes of the seeds), and against spikes."""
    labels = [textwrap.fill(group.label, 2 * _HALF_A_ROW) for group in groups]
    columns = 2 if max(map(len, labels)) <= _HALF_A_ROW else 1
    rows = sum(label.count("\n") + 1 for label in labels) / columns
    fig = Figure(figsize=(11, 3.7 + 0.22 * rows), layout="constrained")
    over_epochs, against_spikes = fig.subplots(1, 2)
    for number, (group, label) in enumerate(zip(groups, labels, strict=True)):
        again = number // 10 % len(_LINES)
        seeds = [[100 * r["test_accuracy"] for r in run.history] for run in group.runs]
        epochs = min(map(len, seeds))  # that all seeds have finished
        by_epoch = [[seed[i] for seed in seeds] for i in range(epochs)]
        x = range(1, epochs + 1)
        mean = [sum(values) / len(values) for values in by_epoch]
        dot = "." if epochs < 3 else ""
        (line,) = over_epochs.plot(x, mean, _LINES[again], label=label, marker=dot)
        low, high = [min(v) for v in by_epoch], [max(v) for v in by_epoch]
        over_epochs.fill_between(x, low, high, alpha=0.2, color=line.get_color(), linewidth=0)
        against_spikes.scatter(
            group.values(lambda run: run.last["test_spikes"]),
            group.values(lambda run: 100 * run.last["test_accuracy"]),
            color=line.get_color(),
            marker=_MARKERS[again],
            s=20,
        )
    over_epochs.xaxis.get_major_locator().set_params(integer=True)
    over_epochs.set(xlabel="epoch", ylabel="test accuracy (%)")
    against_spikes.set(xlabel="hidden spikes per sample", ylabel="test accuracy (%)")
    handles, _ = over_epochs.get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside lower center", ncols=columns)
    return _png(fig)


def rasters(groups: list[Group]) -> bytes:
    """Hidden spikes of the first test sample in one run of each group."""
    shown = [group for group in groups if group.raster][:_RASTERS]
    fig = Figure(figsize=(3.5 * len(shown), 3.5), layout="constrained")
    for axes, group in zip(fig.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        raster: Any = group.raster
        below = 0
        for number, layer in enumerate(raster["layers"]):
            neurons = [below + neuron for neuron in layer["spiking"]]
            axes.scatter(layer["times"], neurons, s=3, linewidths=0, color=f"C{number}")
            below += layer["neurons"]
        spikes = sum(len(layer["times"]) for layer in raster["layers"])
        axes.set(
            title=f"{textwrap.fill(group.label, 40)}\n{spikes} spikes, class {raster['label']}, "
            f"answer {raster['answer']}",
            xlabel="time step",
            ylabel="hidden neuron",
            xlim=(-1, raster["num_steps"]),
            ylim=(-1, below),
        )
        axes.title.set_fontsize(8)
    return _png(fig)


def _png(fig: Figure) -> bytes:
    file = BytesIO()
    fig.savefig(file, format="png", dpi=90)
    return file.getvalue()
