# %% [markdown]
# # 5. Convolutions from spike times
#
# A convolution of spikes adds one patch of weights for each spike. It computes from spike times,
# without a dense map at any step. `FirstSpikePool2d` passes the earliest spike of each window.

# %%
import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

from snn_single_spike import FirstSpikePool2d, LeakyReadout, SingleSpikeConv2d, SpikeTimes
from snn_single_spike.functional import spike_count

torch.manual_seed(0)
num_steps, epochs = 30, 6
digits = load_digits()
order = torch.randperm(len(digits.target))
images = torch.tensor(digits.images, dtype=torch.float32)[order].unsqueeze(1) / 16
labels = torch.tensor(digits.target)[order]
train, test = slice(0, 1437), slice(1437, None)

# %% [markdown]
# A latency code: a brighter pixel fires earlier, and a black pixel never. The times of a batch have
# the shape of the images.

# %%
times = ((1 - images) * (num_steps - 1)).int().masked_fill(images == 0, -1)


def spikes_of(index):
    return SpikeTimes(times[index], num_steps=num_steps)


# %% [markdown]
# The rule `spike_time` visits the steps with spikes only, forward and backward. Its gradient exists
# only for neurons that fire, so the weights begin large.

# %%
conv = SingleSpikeConv2d(1, 16, 3, beta=0.9, padding=1, gradient="spike_time")
pool = FirstSpikePool2d(2)
output = nn.Sequential(nn.Flatten(2), nn.Linear(16 * 4 * 4, 10), LeakyReadout(0.95))
conv.weight.data *= 3
optimizer = torch.optim.Adam([*conv.parameters(), *output.parameters()], lr=3e-3)

losses, counts = [], []
for _ in range(epochs):
    for index in torch.randperm(1437).split(32):
        hidden = conv(spikes_of(index))  # SpikeTimes (30, 32, 16, 8, 8)
        pooled = pool(hidden)  # SpikeTimes (30, 32, 16, 4, 4)
        loss = cross_entropy(output(pooled), labels[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        counts.append(spike_count(pooled, per="sample").mean().item())

with torch.no_grad():
    accuracy = (output(pool(conv(spikes_of(test)))).argmax(1) == labels[test]).float().mean().item()
print(f"{accuracy:.1%} of the test digits are right, with {counts[-1]:.0f} spikes an image")

# %% [markdown]
# The times of one image: the input, and eight of its sixteen feature maps. White never fires.

# %%
with torch.no_grad():
    maps = conv(spikes_of(slice(1437, 1438))).times[0]
panels = [times[1437, 0], *maps[:8]]
figure, grid = plt.subplots(1, 9, figsize=(12, 1.9))
for i, (axes, panel) in enumerate(zip(grid, panels, strict=True)):
    shown = panel.float().masked_fill(panel < 0, torch.nan)
    axes.imshow(shown, cmap="viridis_r", vmin=0, vmax=num_steps)
    axes.set(title="input" if i == 0 else f"map {i}", xticks=[], yticks=[])
figure.suptitle("step of the first spike; dark is late")
figure.tight_layout()
plt.show()

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3))
left.plot(losses)
left.set(xlabel="training step", ylabel="loss", yscale="log")
right.plot(counts)
right.set(xlabel="training step", ylabel="spikes after pooling, per image")
figure.tight_layout()
plt.show()
