"""A description of the machine that measured a figure."""

from __future__ import annotations

import importlib.metadata
import platform
from pathlib import Path

import torch


def describe() -> dict[str, str]:
    facts = {"platform": platform.platform(), "processor": _processor()}
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    for package in ("torch", "snntorch", "triton", "numba"):
        try:
            facts[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            facts[package] = "not installed"
    return facts


def kind() -> str:
    """The kind of machine of a baseline: the GPU, or the processor and the number of threads."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{_processor()}, {torch.get_num_threads()} threads"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
