"""Forward pass of a layer of neurons, once over all time steps.

Of Leaky, whole vectors of lanes have loops of their own; these take the other neurons, and the
lanes that are left of a vector.
"""

import numpy as np

from .block import BLOCK, clamp_decay, initial_state, integrate, lane_values
from .compiling import compiled


@compiled
def neuron_forward_loop(
    low,
    high,
    current,
    beta,
    theta,
    height,
    alpha,
    gain,
    feedback,
    mem_0,
    syn_0,
    inh_0,
    clamp,
    reset,
    spikes,
    mem,
    syn,
    inh,
    times,
    crossing,
    final,
):
    steps = current.shape[0]
    never = np.int32(steps)
    zero, one = current.dtype.type(0), current.dtype.type(1)
    second, third, fed_back = alpha.shape[0] > 0, gain.shape[0] > 0, feedback.shape[0] > 0
    want_spikes, want_mem = spikes.shape[0] > 0, mem.shape[0] > 0
    want_syn, want_inh = syn.shape[0] > 0, inh.shape[0] > 0
    want_crossing, want_final = crossing.shape[0] > 0, final.shape[0] > 0
    times_only = not (want_spikes or want_mem or want_syn or want_final)
    v, before = np.empty(BLOCK, current.dtype), np.empty(BLOCK, current.dtype)
    s, i = np.empty(BLOCK, current.dtype), np.empty(BLOCK, current.dtype)
    unwanted = np.empty(BLOCK, current.dtype)
    b, th = np.empty(BLOCK, current.dtype), np.empty(BLOCK, current.dtype)
    al, gn = np.empty(BLOCK, current.dtype), np.empty(BLOCK, current.dtype)
    fed = np.empty(BLOCK, current.dtype)
    first = np.empty(BLOCK, np.int32)
    active = np.empty(BLOCK, np.bool_)
    graded = want_spikes and (height != one).any()
    for start in range(low, high, BLOCK):
        stop = min(start + BLOCK, high)
        n = stop - start
        lane_values(beta, start, n, b)
        if clamp:
            clamp_decay(b, n, active)
        lane_values(theta, start, n, th)
        initial_state(mem_0, start, n, v)
        if second:
            lane_values(alpha, start, n, al)
            clamp_decay(al, n, active)
            initial_state(syn_0, start, n, s)
        if third:
            lane_values(gain, start, n, gn)
            initial_state(inh_0, start, n, i)
        if fed_back:
            lane_values(feedback, start, n, fed)
            for j in range(n):
                fed[j] *= height[(start + j) % height.shape[0]]
        first[:] = never
        for t in range(steps):
            now = np.int32(t)
            spike_row = spikes[t, start:stop] if want_spikes else unwanted[:n]
            if want_crossing:
                before[:n] = v[:n]
            x = current[t, start:stop]
            integrate(x, v, s, i, b, th, al, gn, fed, first, t, n, reset, second, third, fed_back)
            if want_mem:
                mem[t, start:stop] = v[:n]
            if want_syn:
                syn[t, start:stop] = s[:n]
            if want_inh:
                inh[t, start:stop] = i[:n]
            for j in range(n):
                first[j] = now if (v[j] > th[j]) & (first[j] == never) else first[j]
                spike_row[j] = one if first[j] == now else zero
            if want_crossing:
                for j in range(n):
                    if first[j] == now:
                        crossing[0, start + j] = before[j]
                        crossing[1, start + j] = v[j]
            if times_only and t % 8 == 7 and first[:n].max() < never:
                break
        for j in range(n):
            times[start + j] = first[j] if first[j] < never else -1
        if graded:
            for j in range(n):
                if first[j] < never:
                    spikes[first[j], start + j] = height[(start + j) % height.shape[0]]
        if want_final:
            final[0, start:stop] = v[:n]
            if second:
                final[1, start:stop] = s[:n]
            if third:
                final[2, start:stop] = i[:n]
        if want_crossing:
            for j in range(n):
                if first[j] == never:
                    crossing[0, start + j] = zero
                    crossing[1, start + j] = zero
