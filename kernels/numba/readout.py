"""Sum, maximum or last value over time of a membrane that never fires."""

import numpy as np

from .arguments import ReadoutOutputs
from .block import BLOCK, block_values, clamp_decay, copy, given, initial_state
from .compiling import MAX, SUM, compiled


@compiled
def readout_loop(low, high, current, beta, mem_0, reduction, out):
    out = ReadoutOutputs(*out)
    steps = current.shape[0]
    zero = current.dtype.type(0)
    want_slope = given(out.sensitivity)
    v, slope = np.empty(BLOCK, current.dtype), np.empty(BLOCK, current.dtype)
    decay = np.empty(BLOCK, current.dtype)
    result, result_slope = np.empty(BLOCK, current.dtype), np.empty(BLOCK, current.dtype)
    passes = np.empty(BLOCK, np.bool_)
    taken = np.empty(BLOCK, np.int32)
    for start in range(low, high, BLOCK):
        stop = min(start + BLOCK, high)
        n = stop - start
        block_values(beta, start, n, decay)
        clamp_decay(decay, n, passes)
        initial_state(mem_0, start, n, v)
        slope[:], result_slope[:] = zero, zero
        result[:] = -np.inf if reduction == MAX else zero
        taken[:] = 0 if reduction == MAX else steps - 1
        for t in range(steps):
            x = current[t, start:stop]
            if want_slope:
                for j in range(n):
                    slope[j] = v[j] + decay[j] * slope[j]
            for j in range(n):
                v[j] = decay[j] * v[j] + x[j]
            if reduction == SUM:
                for j in range(n):
                    result[j] += v[j]
                    result_slope[j] += slope[j]
            elif reduction == MAX:
                for j in range(n):
                    nan = (v[j] != v[j]) & (result[j] == result[j])  # NaN wins, as in torch.max
                    better = (v[j] > result[j]) | nan
                    result[j] = v[j] if better else result[j]
                    result_slope[j] = slope[j] if better else result_slope[j]
                    taken[j] = t if better else taken[j]
            else:
                copy(v, n, result)
                copy(slope, n, result_slope)
        copy(result, n, out.value[start:stop])
        if given(out.step):
            for j in range(n):
                out.step[start + j] = taken[j]
        if want_slope:
            for j in range(n):
                out.sensitivity[start + j] = result_slope[j] if passes[j] else zero
