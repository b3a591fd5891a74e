"""Sum, maximum or last value over time of a membrane that never fires."""

import numpy as np

from .block import BLOCK, clamp_decay, initial_state, lane_values
from .compiling import MAX, SUM, compiled


@compiled
def readout_loop(low, high, current, beta, mem_0, value, sensitivity, step, reduction):
    steps = current.shape[0]
    zero = current.dtype.type(0)
    want_slope = sensitivity.shape[0] > 0
    v, slope = np.empty(BLOCK, current.dtype), np.empty(BLOCK, current.dtype)
    decay = np.empty(BLOCK, current.dtype)
    result, result_slope = np.empty(BLOCK, current.dtype), np.empty(BLOCK, current.dtype)
    active = np.empty(BLOCK, np.bool_)
    taken = np.empty(BLOCK, np.int32)
    for start in range(low, high, BLOCK):
        stop = min(start + BLOCK, high)
        n = stop - start
        lane_values(beta, start, n, decay)
        clamp_decay(decay, n, active)
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
                result[:n], result_slope[:n] = v[:n], slope[:n]
        value[start:stop] = result[:n]
        if step.shape[0] > 0:
            for j in range(n):
                step[start + j] = taken[j]
        if want_slope:
            for j in range(n):
                sensitivity[start + j] = result_slope[j] if active[j] else zero
