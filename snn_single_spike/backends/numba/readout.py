"""The compiled loop of the non-firing readout."""

from __future__ import annotations

import torch
from torch import Tensor

from snn_single_spike.kernels.numba import arguments
from snn_single_spike.kernels.numba.compiling import REDUCTIONS
from snn_single_spike.kernels.numba.readout import readout_loop

from .._types import ReadoutOutputs, state_dtype
from ._launch import Arrays, as_array, run_pieces


def readout(
    current: Tensor, beta: Tensor, mem_0: Tensor | None, reduction: str, out: ReadoutOutputs
) -> None:
    num_steps, neurons = current.shape
    dtype = state_dtype(current.dtype)
    results = Arrays()
    outputs = arguments.ReadoutOutputs(
        value=results.write(out.value, 1, dtype),
        sensitivity=results.write(out.sensitivity, 1, dtype),
        step=as_array(out.step, 1, torch.int64),
    )
    inputs = as_array(current, 2, dtype), as_array(beta, 1, dtype), as_array(mem_0, 1, dtype)
    run_pieces(readout_loop, num_steps, 0, neurons, *inputs, REDUCTIONS[reduction], outputs)
    results.copy_back()
