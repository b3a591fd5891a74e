"""Where the settings of a run come from: flags, a saved file, the dataset's recipe, defaults.

A setting is taken from the first of these that gives it.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError

from . import ExperimentError, record
from .config import RESUMABLE, Config, flag
from .datasets import DATASETS
from .recipes import RECIPES


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add a flag for each setting. Flags that are not given are absent from the namespace."""
    for name, field in Config.model_fields.items():
        text, default = field.description or "", field.get_default()
        options: dict[str, Any] = {"metavar": name.rpartition("_")[2].upper()}
        if field.annotation is bool:
            options = {"action": argparse.BooleanOptionalAction}
        elif get_origin(field.annotation) is Literal:
            options["metavar"] = "{" + ",".join(get_args(field.annotation)) + "}"
        if isinstance(default, tuple):
            default = ",".join(map(str, default))
        if default and field.annotation is not bool and not field.is_required():
            shown = f"{default:.3g}" if isinstance(default, float) else default
            text += f" (default: {shown})"
        text = text.replace("%", "%%")
        parser.add_argument(flag(name), default=argparse.SUPPRESS, help=text, **options)


def make(flags: Mapping[str, Any], file: Path | None = None) -> Config:
    """
    Combine and validate the settings of a run.

    :param flags: settings by name; they take precedence over the file
    :param file: TOML, JSON, or the record of a run
    :raises ExperimentError: an unknown or invalid setting; the message names it and the fix
    """
    saved = read(file) if file else {}
    given = {**saved, **flags}
    dataset = given.get("dataset")
    if dataset is None:
        raise ExperimentError(f"--dataset is missing: use one of {', '.join(DATASETS)}")
    recipe = RECIPES.get(dataset, {}) if isinstance(dataset, str) else {}
    values = {**recipe, **given}
    loop = str(values.get("neuron", "")).endswith("loop")
    if loop or values.get("precision") == "bfloat16":
        values.setdefault("spike_format", "dense")
    if values.get("schedule") == "cosine" and "milestones" not in given:
        values["milestones"] = ()  # those of the recipe belong to the other schedule
    try:
        return Config(**values)
    except ValidationError as error:
        first = error.errors()[0]
        where = f"--config {file}: " if {*first["loc"][:1]} & (saved.keys() - flags.keys()) else ""
        raise ExperimentError(where + _explain(first, values)) from None


def _explain(error: Mapping[str, Any], values: Mapping[str, Any]) -> str:
    """One line of what a pydantic error says: the option, its value, and what is expected."""
    if not error["loc"]:  # a rule, which names its options itself
        return str(error["ctx"]["error"])
    name = str(error["loc"][0])
    if error["type"] == "extra_forbidden":
        return f"{name} is not a setting: use {', '.join(Config.model_fields)}"
    if error["type"] == "literal_error":
        expected = f"use one of {', '.join(get_args(Config.model_fields[name].annotation))}"
    else:
        expected = error["msg"].removeprefix("Value error, ").replace("Input should", "must")
        expected = expected.replace("a valid tuple", "a list, separated by commas")
    return f"{flag(name)} {values[name]}: {expected}"


def resumed(run: Path, flags: Mapping[str, Any]) -> Config:
    """
    Combine the settings of a run that is resumed.

    :param run: folder of the run
    :param flags: settings by name; they take precedence
    :raises ExperimentError: as :func:`make`; a setting that must not change
    """
    record.read_header(run)  # reports a folder that holds no run
    file = run / record.NAME
    saved, config = make({}, file), make(flags, file)
    for name in Config.model_fields:
        before, now = getattr(saved, name), getattr(config, name)
        if before != now and name not in RESUMABLE:
            raise ExperimentError(
                f"{flag(name)} {now}: the run was started with {before}; omit {flag(name)}, or "
                "start a new run with another --out. A resumed run may change "
                f"{', '.join(map(flag, RESUMABLE))}"
            )
    if config.schedule == "cosine" and config.epochs != saved.epochs:
        raise ExperimentError(
            f"--epochs {config.epochs}: --schedule cosine has brought the learning rate down over "
            f"{saved.epochs} epochs; omit --epochs, or start a new run with another --out"
        )
    return config


def read(file: Path) -> dict[str, Any]:
    """
    Settings saved as TOML or JSON, or in the record of a run.

    :raises ExperimentError: the file is missing, invalid, or does not hold settings by name
    """
    if file.suffix == ".jsonl":
        return record.read_header(file).settings
    if file.suffix not in (".toml", ".json"):
        raise ExperimentError(f"--config {file}: the name must end in .toml, .json or .jsonl")
    try:
        text = file.read_text(encoding="utf-8")
        held = _toml(text) if file.suffix == ".toml" else json.loads(text)
    except OSError as error:
        raise ExperimentError(f"--config {file}: {error.strerror}") from None
    except ValueError as error:
        raise ExperimentError(f"--config {file} is not valid {file.suffix[1:]}: {error}") from None
    if not isinstance(held, dict):
        raise ExperimentError(f"--config {file}: an object of settings by name is expected")
    return held


def _toml(text: str) -> dict[str, Any]:
    try:
        import tomllib
    except ImportError:  # before Python 3.11
        import tomli as tomllib
    return tomllib.loads(text)
