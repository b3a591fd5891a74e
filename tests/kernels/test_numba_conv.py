"""Which outputs a spike of a convolution reaches, for the compiled CPU loops."""

import numpy as np
import pytest

pytest.importorskip("numba")

from snn_single_spike.backends.numba import conv


@pytest.mark.parametrize("stride", [1, 2, 3, 4])
@pytest.mark.parametrize("dilation", [1, 2, 3])
def test_runs_of_a_convolution_hold_each_tap_once(stride, dilation):
    """Expanded again, the runs are the outputs by tap; windows are those of the outputs."""
    inputs, taps, before, size = 17, 5, 3, 2
    outputs = (inputs + 2 * before - dilation * (taps - 1) - 1) // stride + 1
    reached = conv._reached(inputs, outputs, taps, stride, before, dilation)
    order = conv._order(taps, stride, dilation)
    runs = conv._runs(reached[:, order], outputs // size, size)
    found = np.full_like(reached, -1)
    for x, of_input in enumerate(runs):
        for first, tap, n, window, stop in of_input:
            found[x, order[tap : tap + n]] = range(first, first + n)
            windows = {o // size for o in range(first, first + n) if o // size < outputs // size}
            assert windows == set(range(window, stop))
    assert np.array_equal(found, reached)
    if stride % dilation == 0:
        assert runs.shape[1] == 1  # all outputs of an input lie side by side
