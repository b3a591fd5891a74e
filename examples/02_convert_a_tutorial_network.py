# %% [markdown]
# # 2. Convert a tutorial network
#
# A convolutional network as in snnTorch's tutorial 6: `nn.Sequential`, neurons with hidden states,
# and a function that calls it once for each time step. `convert` makes a network that takes all
# time steps in one call. The data are scikit-learn's digits, so nothing is downloaded.

# %%
import time

import matplotlib.pyplot as plt
import snntorch as snn
import torch
from sklearn.datasets import load_digits
from snntorch import surrogate, utils
from torch import nn
from torch.nn.functional import cross_entropy

from snn_single_spike import convert

torch.manual_seed(0)
num_steps, epochs = 25, 8
digits = load_digits()
order = torch.randperm(len(digits.target))
images = torch.tensor(digits.images, dtype=torch.float32)[order, None] / 16
labels = torch.tensor(digits.target)[order]
train, test = slice(0, 1437), slice(1437, None)


def make_network():
    torch.manual_seed(1)
    options = {"beta": 0.9, "spike_grad": surrogate.fast_sigmoid(slope=25), "init_hidden": True}
    return nn.Sequential(
        nn.Conv2d(1, 8, 3),
        snn.Leaky(**options),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(72, 10),
        snn.Leaky(**options, output=True),
    )


# %% [markdown]
# The author's loop over time:


# %%
def forward_pass(net, data):
    utils.reset(net)
    recorded = [net(data) for _ in range(num_steps)]
    spk_rec, mem_rec = zip(*recorded, strict=True)
    return torch.stack(spk_rec), torch.stack(mem_rec)


loop = make_network()

# %% [markdown]
# And without it. The layers, their parameters and the `state_dict` stay those of the author:

# %%
fast = convert(make_network(), num_steps=num_steps)
assert fast.state_dict().keys() == loop.state_dict().keys()


# %% [markdown]
# One training step of each. The first call of a converted network compares it with the author's
# network, and compiles its kernels, so it is not timed.


# %%
def loss_of(forward, index):
    """An output neuron fires once, so the loss reads the membrane, not a count of spikes."""
    _, mem_rec = forward(images[index])
    return cross_entropy(mem_rec.mean(0), labels[index])


def seconds_of(forward):
    loss_of(forward, slice(0, 64)).backward()
    start = time.perf_counter()
    loss_of(forward, slice(0, 64)).backward()
    return time.perf_counter() - start


print(f"loop: {seconds_of(lambda data: forward_pass(loop, data)):.3f} s a step")
print(f"converted: {seconds_of(fast):.3f} s a step")

# %% [markdown]
# Training is that of any network of torch:

# %%
optimizer = torch.optim.Adam(fast.parameters(), lr=1e-2)
history = []
for _ in range(epochs):
    for index in torch.randperm(1437).split(64):
        loss = loss_of(fast, index)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        spk_rec, mem_rec = fast(images[test])
    accuracy = (mem_rec.mean(0).argmax(1) == labels[test]).float().mean().item()
    history.append(accuracy)
    print(f"{accuracy:.1%} correct, {spk_rec.sum((0, 2)).mean():.1f} output spikes a sample")

# %%
plt.figure(figsize=(6, 3.5))
plt.plot(range(1, epochs + 1), history, marker="o")
plt.xlabel("epoch")
plt.ylabel("test accuracy")
plt.tight_layout()
plt.show()
