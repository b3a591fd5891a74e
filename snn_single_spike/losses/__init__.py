"""Losses for single spikes, called as those of :mod:`snntorch.functional`, without loops.

Construct a loss with its options, then call it with recordings and targets::

    from snn_single_spike import losses

    loss_fn, reg_fn = losses.ce_temporal_loss(), losses.firing_regularizer()
    spk1, _ = lif1(fc1(x))                       # (time, batch, hidden)
    spk2, mem2 = lif2(fc2(spk1))                 # (time, batch, classes)
    loss = loss_fn(spk2, targets) + reg_fn(spk1) + reg_fn(spk2)

Losses accept dense spikes and :class:`snn_single_spike.SpikeTimes`. They compute in float32, or in
float64 for float64 input, also under autocast. They check values on the CPU only, and not in a
compiled graph, because reading a value back stalls a GPU. NaN in a recording makes the loss NaN.
The mean over an empty batch is NaN, as in torch.
"""

from .first_spike import first_spike_times
from .membrane import ce_membrane_loss
from .regularizers import firing_regularizer, spike_count_regularizer
from .temporal import ce_temporal_loss, mse_temporal_loss

__all__ = [
    "ce_membrane_loss",
    "ce_temporal_loss",
    "firing_regularizer",
    "first_spike_times",
    "mse_temporal_loss",
    "spike_count_regularizer",
]
