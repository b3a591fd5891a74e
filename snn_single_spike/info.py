"""Installed versions, devices, and the backend that each device uses."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from . import backends, memory

_PACKAGES = ("snn-single-spike", "torch", "snntorch", "numpy", "numba", "triton")
_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def report() -> str:
    """The text of ``snn-single-spike info``."""
    lines = [f"python            {platform.python_version()} on {platform.platform()}"]
    for name in _PACKAGES:
        try:
            found = version(name)
        except PackageNotFoundError:
            found = "not installed"
        lines.append(f"{name:<17} {found}")
    devices = ["cpu"]
    lines.append(f"cpu               {torch.get_num_threads()} threads{_huge_pages()}")
    lines.append(f"memory            {memory.allocator()} (SNN_SINGLE_SPIKE_MEMORY)")
    if torch.cuda.is_available():
        devices.append("cuda")
        for index in range(torch.cuda.device_count()):
            lines.append(f"cuda:{index:<12} {torch.cuda.get_device_name(index)}")
    else:
        lines.append("cuda              none found")
    for device in devices:
        chosen, reason = backends.explain(device)
        lines.append(f"backend on {device:<6} {chosen}: {reason}")
        for name in backends.BACKENDS:
            obstacle = backends.missing(name, device)
            if obstacle:
                lines.append(f"  not {name:<12} {obstacle}")
    return "\n".join(lines)


def _huge_pages() -> str:
    if not _HUGE_PAGES.is_file():
        return ""
    setting = _HUGE_PAGES.read_text().partition("[")[2].partition("]")[0]
    return f", transparent huge pages: {setting}"
