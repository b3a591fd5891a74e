"""What a figure was measured on."""

from __future__ import annotations

import platform
from pathlib import Path

import snntorch as snn
import torch


def describe() -> dict[str, str]:
    return {
        "platform": platform.platform(),
        "processor": _processor(),
        "torch": torch.__version__,
        "snntorch": snn.__version__,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(": ")[2] for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
