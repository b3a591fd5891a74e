"""Inference on a stream: frame by frame until the first output spike, or in chunks.

python examples/scripts/streaming.py
"""

import torch
from torch import nn

from snn_single_spike import FusedLeaky, SingleSpikeLeaky

torch.manual_seed(0)
fc1, lif1 = nn.Linear(64, 100), SingleSpikeLeaky(beta=0.9)
fc2, lif2 = nn.Linear(100, 10), SingleSpikeLeaky(beta=0.9)
stream = 2 * torch.rand(60, 1, 64)  # (time, batch, features)

with torch.no_grad():
    fc2.weight *= 4  # so that output neurons fire
    whole, _ = lif2(fc2(lif1(fc1(stream))[0]))

    # Frame by frame. The state holds which neurons have fired. None starts a sample.
    state1 = state2 = decision = None
    frames = []
    for frame in stream:
        spk1, state1 = lif1.step(fc1(frame), state1)
        spk2, state2 = lif2.step(fc2(spk1), state2)
        frames.append(spk2)
        if spk2.any() and decision is None:
            decision = int(spk2[0].argmax())
            print(f"step {len(frames) - 1}: class {decision} fires first")
    assert torch.equal(torch.stack(frames), whole)

    # Neurons with every spike also continue in chunks, which is faster than frames.
    fused, state, chunks = FusedLeaky(beta=0.9), None, []
    for chunk in fc1(stream).split(20):
        spk, _ = fused(chunk, state=state)
        state = fused.state
        chunks.append(spk)
    assert torch.equal(torch.cat(chunks), fused(fc1(stream))[0])
print(f"{int(whole.sum())} output neurons fire, at the steps of one call for the whole stream")
