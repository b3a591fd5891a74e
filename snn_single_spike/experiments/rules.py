"""Rules between settings, checked before data is loaded. The network checks its own layers."""

from __future__ import annotations

import math
from typing import Any

import torch

from . import ExperimentError, augment
from .datasets import DATASETS, NEEDS_FILES
from .recordings import SOURCES

# Surrogates with the default of their parameter; None if they have no parameter
SURROGATES = {
    "fast_sigmoid": 10.0,
    "atan": 2.0,
    "sigmoid": 25.0,
    "triangular": 1.0,
    "straight_through_estimator": None,
    "heaviside": None,
}


def check(config: Any) -> None:
    """
    Check settings that depend on each other.

    :raises ExperimentError: names the option, the reason and the fix
    """
    _check_dataset(config)
    _check_neuron(config)
    parse_surrogate(config.surrogate)
    parse_device(config.device)
    if sorted(set(config.milestones)) != list(config.milestones):
        raise ExperimentError(
            f"--milestones {','.join(map(str, config.milestones))}: must be in rising order"
        )
    if config.milestones and config.schedule == "cosine":
        raise ExperimentError(
            f"--milestones {','.join(map(str, config.milestones))}: --schedule cosine has none; "
            "omit --milestones, or use --schedule milestones"
        )


def _check_dataset(config: Any) -> None:
    spec = DATASETS[config.dataset]
    for text in config.augment:
        one = augment.parse(text)
        if one.name == "crop" and one.strength >= min(spec.features[1:], default=math.inf):
            raise ExperimentError(
                f"--augment {text}: images of {config.dataset} are {spec.features[-1]} pixels "
                f"wide; use a shift of at most {spec.features[-1] - 1}"
            )
    if config.augment and (spec.recorded or len(spec.features) != 3):
        raise ExperimentError(
            f"--augment {','.join(config.augment)}: {config.dataset} has no images; omit --augment"
        )
    if config.coding == "current" and spec.recorded:
        raise ExperimentError(
            f"--coding current: the samples of {config.dataset} are recorded spikes; omit --coding"
        )
    if config.dataset in NEEDS_FILES and config.data is None:
        raise ExperimentError(
            f"--dataset {config.dataset} needs --data DIR, the folder with its files"
        )
    if config.dataset not in NEEDS_FILES and config.data is not None:
        raise ExperimentError(f"--data {config.data}: {config.dataset} needs no files; omit --data")
    if config.download and config.dataset not in SOURCES:
        raise ExperimentError(
            f"--download: tonic fetches only {', '.join(SOURCES)}; omit --download"
        )


def _check_neuron(config: Any) -> None:
    single, loop = config.neuron == "single-spike", config.neuron.endswith("loop")
    if not single and config.gradient != "masked":
        raise ExperimentError(
            f"--gradient {config.gradient}: this rule is defined for neurons that spike at most "
            f"once, without a loop over time, which --neuron {config.neuron} is not; use --neuron "
            "single-spike, or omit --gradient"
        )
    if loop and config.spike_format != "dense":
        raise ExperimentError(
            f"--spike-format {config.spike_format}: {config.neuron} is a loop over time, which "
            "needs dense tensors; use --neuron single-spike, or --spike-format dense"
        )
    if config.calibrate and loop:
        raise ExperimentError(
            f"--calibrate {config.calibrate}: {config.neuron} is a loop of snnTorch's neurons, "
            "whose weights are not calibrated; use --neuron single-spike or multi-spike, or omit "
            "--calibrate"
        )
    if config.spike_penalty and single and config.gradient == "spike_time":
        raise ExperimentError(
            f"--spike-penalty {config.spike_penalty}: --gradient spike_time has no gradient that "
            "removes a spike; use another gradient rule, or omit --spike-penalty"
        )
    if config.precision == "bfloat16" and config.spike_format != "dense":
        raise ExperimentError(
            f"--spike-format {config.spike_format}: layers from spike times do not support "
            "bfloat16; use --precision float32, or --spike-format dense"
        )


def parse_device(name: str) -> torch.device:
    """
    The torch device of this name.

    :raises ExperimentError: not a name of a CPU or GPU
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ExperimentError(f"--device {name}: use cpu, cuda or cuda:N")
    return device


def check_device(name: str) -> None:
    """
    Check that this machine has the device. Runs from other machines can still be read.

    :raises ExperimentError: there is no such GPU
    """
    device = parse_device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not count:
            raise ExperimentError(f"--device {name}: no GPU was found; use --device cpu")
        if (device.index or 0) >= count:
            raise ExperimentError(f"--device {name}: the GPUs are cuda:0 to cuda:{count - 1}")


def parse_surrogate(text: str) -> tuple[str, float | None]:
    """
    Parse `NAME[:PARAMETER]` into a name of :mod:`snntorch.surrogate` and its parameter.

    :raises ExperimentError: an unknown name, or an invalid parameter
    """
    name, colon, number = text.partition(":")
    if name not in SURROGATES:
        raise ExperimentError(f"--surrogate {text}: use one of {', '.join(SURROGATES)}")
    default = SURROGATES[name]
    if not colon:
        return name, default
    if default is None:
        raise ExperimentError(f"--surrogate {text}: {name} has no parameter; write {name}")
    try:
        parameter = float(number)
    except ValueError:
        parameter = math.nan
    if not 0 < parameter < math.inf:
        raise ExperimentError(f"--surrogate {text}: the parameter must be a number above 0")
    return name, parameter
