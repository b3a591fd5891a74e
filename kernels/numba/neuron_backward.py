"""Backward pass of a layer of neurons, once over all time steps; see ``neuron_forward.py``."""

import numpy as np

from .block import BLOCK, clamp_decay, initial_state, integrate, lane_values, reset_steps
from .compiling import MASKED, NO_RULE, PRE_SPIKE, STRAIGHT_THROUGH, SUBTRACT, ZERO_AFTER, compiled
from .simd import LANES, load, store
from .surrogate import surrogate_slope


@compiled
def neuron_backward_loop(
    low,
    high,
    steps,
    mem,
    current,
    syn,
    inh,
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
    times,
    grad_spikes,
    grad_mem,
    grad_syn,
    grad_inh,
    grad_at,
    grad_before,
    grad_current,
    grad_beta,
    grad_theta,
    grad_alpha,
    grad_gain,
    grad_feedback,
    grad_mem_0,
    grad_syn_0,
    grad_inh_0,
    rule,
    surrogate,
    a,
    b,
):
    dtype = beta.dtype
    zero = dtype.type(0)
    recompute = current.shape[0] > 0
    second, third, fed_back = alpha.shape[0] > 0, gain.shape[0] > 0, feedback.shape[0] > 0
    want_current = grad_current.shape[0] > 0
    want_beta, want_theta = grad_beta.shape[0] > 0, grad_theta.shape[0] > 0
    want_alpha, want_gain = grad_alpha.shape[0] > 0, grad_gain.shape[0] > 0
    has_g, has_h, has_at = grad_spikes.shape[0] > 0, grad_mem.shape[0] > 0, grad_at.shape[0] > 0
    has_q, has_r = grad_syn.shape[0] > 0, grad_inh.shape[0] > 0
    through = (has_g or fed_back) and rule != NO_RULE
    source = grad_current if recompute else mem
    # lam lives in the rows of grad_current, or in two rows of its own that take turns
    lam = grad_current if want_current and not second else np.empty((2, BLOCK), dtype)
    decay, th = np.empty(BLOCK, dtype), np.empty(BLOCK, dtype)
    peak, v_0 = np.empty(BLOCK, dtype), np.empty(BLOCK, dtype)
    slope, ramp = np.empty(BLOCK, dtype), np.empty(BLOCK, dtype)
    tail, zeros = np.empty(BLOCK, dtype), np.zeros(BLOCK, dtype)
    d_beta, d_theta = np.empty(BLOCK, dtype), np.empty(BLOCK, dtype)
    active = np.ones(BLOCK, np.bool_)
    first, limit = np.empty(BLOCK, np.int32), np.empty(BLOCK, np.int32)
    # Of neurons with synaptic currents or feedback
    al, gn = np.empty(BLOCK, dtype), np.empty(BLOCK, dtype)
    fed, weight = np.empty(BLOCK, dtype), np.empty(BLOCK, dtype)
    s_0, i_0, v = np.empty(BLOCK, dtype), np.empty(BLOCK, dtype), np.empty(BLOCK, dtype)
    s, i, total = np.empty(BLOCK, dtype), np.empty(BLOCK, dtype), np.empty(BLOCK, dtype)
    lam_s, lam_i = np.empty(BLOCK, dtype), np.empty(BLOCK, dtype)
    d_alpha, d_gain = np.empty(BLOCK, dtype), np.empty(BLOCK, dtype)
    active_alpha = np.empty(BLOCK, np.bool_)
    for start in range(low, high, BLOCK):
        stop = min(start + BLOCK, high)
        n = stop - start
        offset = start if want_current and not second else 0
        lane_values(beta, start, n, decay)
        if clamp:
            clamp_decay(decay, n, active)
        lane_values(theta, start, n, th)
        lane_values(height, start, n, peak)
        initial_state(mem_0, start, n, v_0)
        if second:
            lane_values(alpha, start, n, al)
            clamp_decay(al, n, active_alpha)
            initial_state(syn_0, start, n, s_0)
        if third:
            lane_values(gain, start, n, gn)
            initial_state(inh_0, start, n, i_0)
        if fed_back:
            lane_values(feedback, start, n, weight)
            fed[:n] = weight[:n] * peak[:n]
        for j in range(n):
            first[j] = times[start + j] if times[start + j] >= 0 else steps
        if recompute:
            # The membrane goes where its gradient will overwrite it, row by row.
            v[:n], s[:n], i[:n] = v_0[:n], s_0[:n], i_0[:n]
            for t in range(steps):
                x = current[t, start:stop]
                integrate(
                    x, v, s, i, decay, th, al, gn, fed, first, t, n, reset, second, third, fed_back
                )
                grad_current[t, start:stop] = v[:n]
        limit[:] = steps
        if rule == MASKED:
            limit[:n] = first[:n]
        tail[:], ramp[:], d_beta[:], d_theta[:] = zero, zero, zero, zero
        lam_s[:], lam_i[:], d_alpha[:], d_gain[:] = zero, zero, zero, zero
        after = zeros[:n]
        for k in range(steps - 1, -1, -1):
            now = np.int32(k)
            subtract, zeroed = reset_steps(reset, k + 1)
            row = lam[k % lam.shape[0], offset : offset + n]
            if want_theta and reset == SUBTRACT and not third:
                for j in range(n):
                    d_theta[j] -= after[j] if first[j] == subtract else zero
            if want_beta and not third:
                held = source[k, start:stop]
                for j in range(n):
                    d_beta[j] += (zero if first[j] == zeroed else after[j]) * held[j]
            if through:
                g = zeros[:n]
                if has_g:
                    g = grad_spikes[k if grad_spikes.shape[0] > 1 else 0, start:stop]
                if fed_back:
                    for j in range(n):
                        total[j] = g[j] + weight[j] * after[j]  # peak follows below, for both
                    g = total[:n]
                if rule == PRE_SPIKE:
                    for j in range(n):
                        tail[j] += g[j] if now < first[j] else zero
                        ramp[j] += tail[j]
                    g = ramp[:n]
                elif rule == STRAIGHT_THROUGH:
                    for j in range(n):
                        tail[j] += g[j]
                        ramp[j] += tail[j]
                    g = ramp[:n]
                v[:n] = source[k, start:stop]
                for j in range(0, n, LANES):
                    distance = load(v, j) - load(th, j)
                    store(slope, j, surrogate_slope(distance, surrogate, a, b))
                for j in range(n):
                    slope[j] *= g[j] * peak[j] if now <= limit[j] else zero
                    row[j] = decay[j] * (zero if first[j] == zeroed else after[j]) + slope[j]
                if want_theta:
                    for j in range(n):
                        d_theta[j] -= slope[j]
                if third:
                    row[:] = slope[:n]  # the membrane of Alpha carries nothing over
            elif third:
                row[:] = zero
            else:
                for j in range(n):
                    row[j] = decay[j] * (zero if first[j] == zeroed else after[j])
            if has_h:
                h = grad_mem[k if grad_mem.shape[0] > 1 else 0, start:stop]
                for j in range(n):
                    row[j] += h[j]
            if has_at:
                for j in range(n):
                    row[j] += grad_at[start + j] if first[j] == now else zero
                    row[j] += grad_before[start + j] if first[j] == now + np.int32(1) else zero
            if second or fed_back or reset == ZERO_AFTER:
                if grad_feedback.shape[0] > 0:
                    for j in range(n):
                        if first[j] == now:
                            grad_feedback[start + j] = after[j]
                if reset == ZERO_AFTER:
                    for j in range(n):
                        row[j] = zero if first[j] == now - np.int32(1) else row[j]
                if want_alpha:
                    for j in range(n):
                        d_alpha[j] += lam_s[j] * syn[k, start + j]
                if third:
                    if want_beta:
                        for j in range(n):
                            d_beta[j] += lam_i[j] * inh[k, start + j]
                    if want_gain:
                        # What the gain multiplies at k+1; there the current cancels.
                        for j in range(n):
                            both = al[j] * syn[k, start + j] + decay[j] * inh[k, start + j]
                            d_gain[j] += after[j] * both
                if second:
                    for j in range(n):
                        lam_s[j] *= al[j]
                    if has_q:
                        q = grad_syn[k if grad_syn.shape[0] > 1 else 0, start:stop]
                        for j in range(n):
                            lam_s[j] += q[j]
                if third:
                    for j in range(n):
                        lam_i[j] *= decay[j]
                    if has_r:
                        r = grad_inh[k if grad_inh.shape[0] > 1 else 0, start:stop]
                        for j in range(n):
                            lam_i[j] += r[j]
                    if reset == SUBTRACT:
                        for j in range(n):
                            if first[j] == now:
                                lam_i[j] += after[j]
                            if first[j] == now - np.int32(1):
                                d_theta[j] -= lam_s[j]
                                lam_i[j] = zero
                    for j in range(n):
                        lam_s[j] += gn[j] * row[j]
                        lam_i[j] += gn[j] * row[j]
                    if reset == ZERO_AFTER:
                        for j in range(n):
                            lam_s[j] = zero if first[j] == now - np.int32(1) else lam_s[j]
                            lam_i[j] = zero if first[j] == now - np.int32(1) else lam_i[j]
                    if want_current:
                        grad_current[k, start:stop] = lam_s[:n] - lam_i[:n]
                elif second:
                    for j in range(n):
                        lam_s[j] += row[j]
                    if want_current:
                        grad_current[k, start:stop] = lam_s[:n]
            after = row
        if want_beta:
            for j in range(n):
                rest = lam_i[j] * i_0[j] if third else after[j] * v_0[j]
                grad_beta[start + j] = d_beta[j] + rest if active[j] else zero
        if want_theta:
            grad_theta[start:stop] = d_theta[:n]
        if grad_mem_0.shape[0] > 0:
            for j in range(n):
                grad_mem_0[start + j] = decay[j] * after[j]
        if want_alpha:
            for j in range(n):
                grad_alpha[start + j] = d_alpha[j] + lam_s[j] * s_0[j] if active_alpha[j] else zero
        if want_gain:
            for j in range(n):
                both = al[j] * s_0[j] + decay[j] * i_0[j]
                grad_gain[start + j] = d_gain[j] + after[j] * both
        if grad_feedback.shape[0] > 0:
            for j in range(n):
                if first[j] == steps:
                    grad_feedback[start + j] = zero
        if grad_syn_0.shape[0] > 0:
            grad_syn_0[start:stop] = al[:n] * lam_s[:n]
        if grad_inh_0.shape[0] > 0:
            grad_inh_0[start:stop] = decay[:n] * lam_i[:n]
