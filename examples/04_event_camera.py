# %% [markdown]
# # 4. Event cameras
#
# Recordings go through tonic's transforms into `SpikeEvents`, and a linear layer computes from the
# events. No dense frame is made. The recordings are synthetic bars that move in four directions, so
# nothing is downloaded. For a dataset of tonic, replace `Bars` by e.g.
# `tonic.datasets.NMNIST("data", transform=transform)`.

# %%
import matplotlib.pyplot as plt
import numpy as np
import tonic
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset

from snn_single_spike import LeakyReadout, SingleSpikeLinear
from snn_single_spike.data import ToSpikeEvents, collate

torch.manual_seed(0)
epochs = 6
sensor_size = (16, 16, 2)  # x, y, polarity
directions = ("right", "left", "down", "up")


class Bars(Dataset):
    """Bars that cross the sensor in 32 ms, with noise; recordings as tonic's datasets give them."""

    dtype = np.dtype([("x", "<i2"), ("y", "<i2"), ("p", "?"), ("t", "<i8")])

    def __init__(self, size, seed, transform=None):
        self.size, self.seed, self.transform = size, seed, transform

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        draw = np.random.default_rng([self.seed, index])
        label = int(draw.integers(4))
        events = np.zeros(340, self.dtype)
        noise = slice(300, None)
        place = draw.integers(0, 16, 340)
        across = draw.integers(2, 14, 340)
        time = place if label in (0, 2) else 15 - place
        events["t"] = time * 2000 + draw.integers(0, 2000, 340)
        events["t"][noise] = draw.integers(0, 32_000, 40)
        along, other = ("x", "y") if label < 2 else ("y", "x")
        events[along], events[other] = place, across
        events["p"] = draw.integers(0, 2, 340)
        events = np.sort(events, order="t")
        return (self.transform(events) if self.transform else events), label


# %% [markdown]
# `ToSpikeEvents` takes the place of `tonic.transforms.ToFrame`. `collate` makes batches, also in
# worker processes.

# %%
transform = tonic.transforms.Compose(
    [
        tonic.transforms.Denoise(filter_time=4000),
        ToSpikeEvents(sensor_size, num_steps=32, time_window=1000, late="drop"),
    ]
)
train = DataLoader(Bars(320, 0, transform), batch_size=32, shuffle=True, collate_fn=collate)
test = DataLoader(Bars(100, 1, transform), batch_size=100, collate_fn=collate)
spikes, targets = next(iter(test))
print(f"{type(spikes).__name__} {tuple(spikes.shape)}: (time, batch, polarity, y, x)")

# %%
of_each = {label: events for events, label in map(Bars(40, 7).__getitem__, range(40))}
figure, panels = plt.subplots(1, 4, figsize=(11, 3), layout="constrained")
for label, axes in enumerate(panels):
    events = of_each[label]
    points = axes.scatter(events["x"], events["y"], c=events["t"] / 1000, s=6)
    axes.set(title=directions[label], xlabel="x", xticks=(0, 5, 10, 15), ylim=(15.5, -0.5))
panels[0].set_ylabel("y")
figure.colorbar(points, ax=panels, label="time in ms")
plt.show()

# %% [markdown]
# The direction is in the order of the events, so the network has to use time.

# %%
net = nn.Sequential(
    SingleSpikeLinear(512, 64, beta=0.8),
    nn.Linear(64, 4),
    LeakyReadout(0.95),
)
optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
losses = []
for _ in range(epochs):
    for spikes, targets in train:
        loss = cross_entropy(net(spikes.flatten(2)), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

with torch.no_grad():
    spikes, targets = next(iter(test))
    accuracy = (net(spikes.flatten(2)).argmax(1) == targets).float().mean().item()
print(f"{accuracy:.1%} of the directions are right; chance is 25 %")

# %%
plt.figure(figsize=(6, 3))
plt.plot(losses)
plt.xlabel("training step")
plt.ylabel("loss")
plt.tight_layout()
plt.show()
