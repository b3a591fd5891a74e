"""Launches the Triton kernel of the non-firing readout."""

from __future__ import annotations

import torch
import triton

from snn_single_spike.kernels.triton.readout import readout_kernel

from .._types import ReadoutOutputs
from ._launch import (
    FORWARD_WIDE,
    LAUNCH,
    forward_steps,
    is_wide,
    neurons_per_program,
    on_device_of,
    state_type,
    warp_size,
)


def readout(
    current: torch.Tensor,
    beta: torch.Tensor,
    mem_0: torch.Tensor | None,
    reduction: str,
    out: ReadoutOutputs,
) -> None:
    num_steps, neurons = current.shape
    wide = is_wide(current.dtype, neurons, FORWARD_WIDE, current)
    block = neurons_per_program(neurons, wide)
    with on_device_of(current):
        readout_kernel[(triton.cdiv(neurons, block),)](
            current=current,
            beta=beta,
            mem_0=mem_0,
            **out._asdict(),
            T=num_steps,
            M=neurons,
            P_BETA=beta.numel(),
            REDUCTION=reduction,
            STATE=state_type(current.dtype),
            BLOCK=block,
            U=forward_steps(wide, False, warp_size() or 32),
            **LAUNCH,
        )
