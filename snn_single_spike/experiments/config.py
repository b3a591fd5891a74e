"""Settings of a run: from flags, a saved file and the dataset's recipe, in this order."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..functional import GRADIENT_RULES, REDUCTIONS, SPIKE_FORMATS
from . import ExperimentError
from .augment import parse as parse_augmentation
from .datasets import DATASETS, NEEDS_FILES
from .recipes import RECIPES

NEURONS = ("single-spike", "multi-spike", "single-spike-loop")
PRECISIONS = ("float32", "float64", "bfloat16")
# With the default of their parameter; None: they have none
SURROGATES = {
    "fast_sigmoid": 10.0,
    "atan": 2.0,
    "sigmoid": 25.0,
    "triangular": 1.0,
    "straight_through_estimator": None,
}


def _setting(default: Any, kind: str, help: str, choices: tuple[str, ...] = ()) -> Any:
    metadata = {"kind": kind, "help": help, "choices": choices}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Config:
    """
    Every setting of a run. A field `x_y` is the flag `--x-y` and the key `x_y` of a saved file.

    The defaults are the papers'; what differs between datasets is in
    :data:`snn_single_spike.experiments.recipes.RECIPES`.
    """

    dataset: str = _setting("", "word", "what to train on", tuple(DATASETS))
    data: str | None = _setting(None, "text?", "folder with the dataset's files")
    cache: str | None = _setting(None, "text?", "folder for decoded events (user's cache folder)")
    train_samples: int | None = _setting(None, "count?", "train on N only, always the same")
    test_samples: int | None = _setting(None, "count?", "test on N only, always the same")
    hold_out: int | None = _setting(
        None, "count?", "test on N samples kept out of training, not on the test set"
    )
    num_steps: int = _setting(100, "count", "time steps per sample")

    layers: str = _setting(
        "100",
        "text",
        "hidden layers: 300-100 are two of so many neurons; 12C5-P2-100 are 12 feature maps "
        "(5 x 5), average pooling (2 x 2) and 100 neurons",
    )
    neuron: str = _setting(
        "single-spike",
        "word",
        "of the hidden layers: SingleSpikeLeaky, or snn.Leaky in a loop over time with all its "
        "spikes or with its first only",
        NEURONS,
    )
    spike_format: str = _setting(
        "times",
        "word",
        "what layers hand on: dense tensors, or spike times, which no loop takes",
        SPIKE_FORMATS,
    )
    gradient: str = _setting("masked", "word", "gradient rule", GRADIENT_RULES)
    surrogate: str = _setting(
        "fast_sigmoid:10", "text", f"NAME[:PARAMETER], of snnTorch: {', '.join(SURROGATES)}"
    )
    readout: str = _setting("sum", "word", "what is read of the last membrane", REDUCTIONS)
    beta: float = _setting(math.exp(-1 / 10), "decay", "decay of hidden neurons, at first")
    readout_beta: float = _setting(math.exp(-1 / 20), "decay", "decay of the readout, at first")
    learn_beta: bool = _setting(True, "switch", "learn the decay of each neuron")
    weight_scale: tuple[float, ...] = _setting(
        (1.0,), "positives", "factors of the first weights, one for each layer or one for all"
    )

    seed: int = _setting(0, "seed", "weights, order of the samples and augmentation")
    device: str = _setting("cpu", "text", "cpu, cuda or cuda:N")
    precision: str = _setting("float32", "word", "bfloat16 is autocast", PRECISIONS)
    epochs: int = _setting(100, "count", "passes over the training set")
    batch: int = _setting(128, "count", "samples per step, over all processes")
    lr: float = _setting(1e-3, "positive", "learning rate of Adam")
    weight_decay: float = _setting(0.0, "whole_or_more", "L2 penalty of Adam")
    spike_penalty: float = _setting(
        0.0, "whole_or_more", "cost of a hidden spike, added to the cross-entropy of a sample"
    )
    milestones: tuple[int, ...] = _setting((), "counts", "epochs after which lr is decayed")
    lr_decay: float = _setting(0.1, "positive", "factor of lr at each milestone")
    augment: tuple[str, ...] = _setting(
        (),
        "texts",
        "of training images: perspective, flip, crop, noise, each NAME[:STRENGTH[:PROBABILITY]]",
    )
    tensorboard: bool = _setting(False, "switch", "write TensorBoard files, too")


FIELDS = {f.name: f for f in dataclasses.fields(Config)}
# What may change when a run goes on
RESUMABLE = ("data", "cache", "device", "epochs", "tensorboard")


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


# From the text of a flag to a value, from a value in a file to a value; ValueError says what is
# expected.
def _number(
    value: Any, kind: type, low: float, strict: bool, expected: str, high: float = math.inf
) -> Any:
    if isinstance(value, bool):
        raise ValueError(expected)
    try:
        number = kind(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(expected) from None
    if isinstance(value, float) and number != value:
        raise ValueError(expected)
    if not math.isfinite(number) or not low <= number <= high:
        raise ValueError(expected)
    if strict and number == low:
        raise ValueError(expected)
    return number


def _convert(kind: str, value: Any) -> Any:
    if kind.endswith("?"):
        return None if value is None else _convert(kind[:-1], value)
    if kind == "count":
        return _number(value, int, 1, False, "a whole number from 1 on")
    if kind == "seed":
        return _number(
            value, int, 0, False, "a whole number from 0 to 2^63 - 1", high=(1 << 63) - 1
        )
    if kind == "positive":
        return _number(value, float, 0, True, "a number above 0")
    if kind == "whole_or_more":
        return _number(value, float, 0, False, "a number from 0 on")
    if kind == "decay":
        return _number(value, float, 0, False, "a number from 0 to 1", high=1)
    if kind in ("counts", "positives", "texts"):
        parts = [part for part in value.split(",") if part] if isinstance(value, str) else value
        if not isinstance(parts, list | tuple):
            raise ValueError("a list, separated by commas")
        return tuple(_convert(kind[:-1], part) for part in parts)
    if kind == "switch":
        if not isinstance(value, bool):
            raise ValueError("true or false")
        return value
    if not isinstance(value, str):
        raise ValueError("a text")
    return value


def add_flags(parser: argparse.ArgumentParser) -> None:
    """One flag for each setting; unset ones stay away from the namespace."""
    for name, f in FIELDS.items():
        kind = f.metadata["kind"]
        text = f.metadata["help"]
        if f.default not in ((), None, "") and kind != "switch":
            shown = ",".join(map(str, f.default)) if isinstance(f.default, tuple) else f.default
            text += f" (default: {shown:.3g})" if kind == "decay" else f" (default: {shown})"
        if kind == "switch":
            parser.add_argument(
                flag(name),
                action=argparse.BooleanOptionalAction,
                default=argparse.SUPPRESS,
                help=text,
            )
        else:
            parser.add_argument(
                flag(name),
                default=argparse.SUPPRESS,
                metavar="{" + ",".join(f.metadata["choices"]) + "}"
                if f.metadata["choices"]
                else name.rpartition("_")[2].upper(),
                help=text.replace("%", "%%"),
            )


def make(flags: Mapping[str, Any], file: Path | None = None) -> Config:
    """
    The settings of a run, checked.

    :param flags: settings by name; they win over the file
    :param file: TOML or JSON
    :raises ExperimentError: a setting that is unknown or cannot be, by its name and the fix
    """
    unknown = sorted(set(flags) - set(FIELDS))
    if unknown:
        raise ExperimentError(f"{', '.join(unknown)} is not known, use {', '.join(FIELDS)}")
    given = {**(read(file) if file else {}), **flags}
    name = given.get("dataset")
    if not name:
        raise ExperimentError(f"--dataset is missing: use one of {', '.join(DATASETS)}")
    values = {**(RECIPES.get(name, {}) if isinstance(name, str) else {}), **given}
    if values.get("neuron", "single-spike") != "single-spike" or (
        values.get("precision") == "bfloat16"
    ):
        values.setdefault("spike_format", "dense")
    for key, value in values.items():
        f = FIELDS[key]
        try:
            values[key] = _convert(f.metadata["kind"], value)
        except ValueError as error:
            raise ExperimentError(f"{flag(key)} {value}: {error} is expected") from None
        choices = f.metadata["choices"]
        if choices and values[key] not in choices:
            raise ExperimentError(f"{flag(key)} {value}: use one of {', '.join(choices)}")
    config = Config(**values)
    check(config)
    return config


def resumed(file: Path, flags: Mapping[str, Any]) -> Config:
    """
    The settings of a run that goes on.

    :param file: its settings
    :param flags: settings by name, which win
    :raises ExperimentError: as :func:`make`; a setting that would make it another run
    """
    check_run(file)
    saved, config = make({}, file), make(flags, file)
    for name in FIELDS:
        before, now = getattr(saved, name), getattr(config, name)
        if before != now and name not in RESUMABLE:
            raise ExperimentError(
                f"{flag(name)} {now}: the run was begun with {before}; leave it out, or train anew "
                f"with another --out. What may change: {', '.join(map(flag, RESUMABLE))}"
            )
    return config


def check_run(file: Path) -> None:
    """
    Refuse a folder without the settings that :func:`snn_single_spike.experiments.training.train`
    leaves there.

    :raises ExperimentError: there is no such file
    """
    if not file.is_file():
        raise not_of_a_run(file)


def not_of_a_run(missing: Path) -> ExperimentError:
    """What is wrong with a folder that has no such file."""
    return ExperimentError(
        f"{missing.parent} is not the folder of a run: {missing.name} is missing. Give the folder "
        "that train wrote, its --out or in runs/"
    )


def read(file: Path) -> dict[str, Any]:
    """
    Settings saved as TOML or JSON.

    :raises ExperimentError: no such file, not of this form, or settings that are not known
    """
    if file.suffix not in (".toml", ".json"):
        raise ExperimentError(f"--config {file}: end the name in .toml or .json")
    try:
        text = file.read_text(encoding="utf-8")
        held = _toml(text) if file.suffix == ".toml" else json.loads(text)
    except OSError as error:
        raise ExperimentError(f"--config {file}: {error.strerror}") from None
    except ValueError as error:
        raise ExperimentError(f"--config {file} is not valid {file.suffix[1:]}: {error}") from None
    if not isinstance(held, dict):
        raise ExperimentError(f"--config {file}: settings by name are expected")
    unknown = sorted(set(held) - set(FIELDS))
    if unknown:
        raise ExperimentError(
            f"--config {file}: {', '.join(unknown)} is not known, use {', '.join(FIELDS)}"
        )
    return held


def _toml(text: str) -> dict[str, Any]:
    try:
        import tomllib
    except ImportError:  # before Python 3.11
        import tomli as tomllib
    return tomllib.loads(text)


def to_json(config: Config) -> str:
    """As :func:`read` reads it."""
    return json.dumps(dataclasses.asdict(config), indent=1) + "\n"


def check(config: Config) -> None:
    """Refuse what cannot be before anything is loaded; the network checks its layers itself."""
    spec = DATASETS[config.dataset]
    ours = config.neuron == "single-spike"
    parse_surrogate(config.surrogate)
    for text in config.augment:
        one = parse_augmentation(text)
        if one.name == "crop" and one.strength >= min(spec.features[1:], default=math.inf):
            raise ExperimentError(
                f"--augment {text}: images of {config.dataset} have {spec.features[-1]} pixels a "
                "side, shift them by fewer"
            )
    if config.augment and not (spec.coding == "latency" and len(spec.features) == 3):
        raise ExperimentError(
            f"--augment {','.join(config.augment)}: {config.dataset} has no images, leave it out"
        )
    if config.dataset in NEEDS_FILES and config.data is None:
        raise ExperimentError(
            f"--dataset {config.dataset} needs --data DIR, the folder in which its files are"
        )
    if config.dataset not in NEEDS_FILES and config.data is not None:
        raise ExperimentError(
            f"--data {config.data}: {config.dataset} needs no files, leave it out"
        )
    if not ours and config.gradient != "masked":
        raise ExperimentError(
            f"--gradient {config.gradient}: a loop over time ({config.neuron}) is differentiated "
            "step by step; use --neuron single-spike, or leave --gradient out"
        )
    if not ours and config.spike_format != "dense":
        raise ExperimentError(
            f"--spike-format {config.spike_format}: a loop over time ({config.neuron}) takes dense "
            "tensors; use --neuron single-spike, or --spike-format dense"
        )
    if config.spike_penalty and ours and config.gradient == "spike_time":
        raise ExperimentError(
            f"--spike-penalty {config.spike_penalty}: the number of spikes has no gradient by "
            "--gradient spike_time, which moves their times; use another rule, or leave it out"
        )
    if config.precision == "bfloat16" and config.spike_format != "dense":
        raise ExperimentError(
            f"--spike-format {config.spike_format}: layers of spike times are not computed in bfloat16; "
            "use --precision float32, or --spike-format dense"
        )
    if sorted(set(config.milestones)) != list(config.milestones):
        raise ExperimentError(
            f"--milestones {','.join(map(str, config.milestones))}: write them in rising order"
        )
    _device(config.device)


def _device(name: str) -> Any:
    import torch

    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise ExperimentError(f"--device {name}: use cpu, cuda or cuda:N")
    return device


def check_device(name: str) -> None:
    """
    Refuse a device that is not here; a run that was made on it can be read all the same.

    :raises ExperimentError: no such GPU
    """
    import torch

    device = _device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not count:
            raise ExperimentError(f"--device {name}: no GPU was found, use --device cpu")
        if (device.index or 0) >= count:
            raise ExperimentError(f"--device {name}: there are GPUs 0 to {count - 1}")


def parse_surrogate(text: str) -> tuple[str, float | None]:
    """
    `NAME[:PARAMETER]` as a name of :mod:`snntorch.surrogate` and its parameter.

    :raises ExperimentError: an unknown name, or a parameter that cannot be
    """
    name, colon, number = text.partition(":")
    if name not in SURROGATES:
        raise ExperimentError(f"--surrogate {text}: use one of {', '.join(SURROGATES)}")
    default = SURROGATES[name]
    if not colon:
        return name, default
    if default is None:
        raise ExperimentError(f"--surrogate {text}: {name} has no parameter")
    try:
        return name, _convert("positive", number)
    except ValueError as error:
        raise ExperimentError(f"--surrogate {text}: {error} is expected") from None
