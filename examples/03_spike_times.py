# %% [markdown]
# # 3. Spike times
#
# A neuron that fires once is described by one number. Layers that pass spike times to each other
# make no `(time, batch, features)` tensor, so that the number of time steps hardly matters.

# %%
import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

from snn_single_spike import LeakyReadout, SingleSpikeLinear, SpikeTimes
from snn_single_spike.functional import spike_count

torch.manual_seed(0)
num_steps, epochs = 50, 8
digits = load_digits()
order = torch.randperm(len(digits.target))
pixels = torch.tensor(digits.data, dtype=torch.float32)[order] / 16
labels = torch.tensor(digits.target)[order]
train, test = slice(0, 1437), slice(1437, None)

# %% [markdown]
# A latency code: a brighter pixel fires earlier, and a black pixel never.

# %%
times = ((1 - pixels) * (num_steps - 1)).int()
times[pixels == 0] = -1


def spikes_of(index):
    return SpikeTimes(times[index], num_steps=num_steps)


# %% [markdown]
# The network is trained twice. The second time every spike of the hidden layer has a cost.


# %%
def fit(cost):
    torch.manual_seed(1)
    hidden = SingleSpikeLinear(64, 100, beta=0.9, learn_beta=True)
    output = nn.Sequential(nn.Linear(100, 10), LeakyReadout(0.95, learn_beta=True))
    parameters = [*hidden.parameters(), *output.parameters()]
    hidden.weight.data *= 3  # larger than those of nn.Linear, so that more neurons fire
    optimizer = torch.optim.Adam(parameters, lr=1e-2)
    history = []
    for _ in range(epochs):
        for index in torch.randperm(1437).split(32):
            spikes = hidden(spikes_of(index))
            loss = cross_entropy(output(spikes), labels[index])
            loss = loss + cost * spike_count(spikes, per="sample").mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            spikes = hidden(spikes_of(test))
            right = output(spikes).argmax(1) == labels[test]
        fired = (spikes.times >= 0).sum(1).float().mean()
        history.append((right.float().mean().item(), fired.item()))
    return spikes, torch.tensor(history)


results = {cost: fit(cost) for cost in (0.0, 0.01)}
for cost, (_, history) in results.items():
    accuracy, fired = history[-1].tolist()
    print(f"cost {cost}: {accuracy:.1%} correct, {fired:.1f} of 100 hidden neurons fire")

# %% [markdown]
# The spikes of one sample, and accuracy against spikes after each epoch:

# %%
figure, (raster, curve) = plt.subplots(1, 2, figsize=(10, 4))
for cost, (spikes, history) in results.items():
    fired = spikes.times[0] >= 0
    raster.scatter(spikes.times[0][fired], fired.nonzero()[:, 0], s=12, label=f"cost {cost}")
    curve.plot(history[:, 1], history[:, 0], marker="o", label=f"cost {cost}")
raster.set(title="hidden layer, one sample", xlabel="time step", ylabel="neuron")
curve.set(title="after each epoch", xlabel="hidden spikes per sample", ylabel="test accuracy")
curve.legend(loc="lower right")
figure.tight_layout()
plt.show()
