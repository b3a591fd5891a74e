# %% [markdown]
# # 1. The first layer
#
# A neuron that fires at most once per sample needs no loop over time. This notebook computes one
# layer twice: by `snn.Leaky` in a loop, and by `SingleSpikeLeaky` in one call.

# %%
import matplotlib.pyplot as plt
import snntorch as snn
import torch

from snn_single_spike import SingleSpikeLeaky

torch.manual_seed(0)
num_steps, batch, features = 100, 1, 40
current = 0.3 * torch.rand(num_steps, batch, features) * torch.rand(features)

# %% [markdown]
# snnTorch steps through time:

# %%
leaky = snn.Leaky(beta=0.9)
mem = leaky.reset_mem()
spk_rec, mem_rec = [], []
for step in range(num_steps):
    spk, mem = leaky(current[step], mem)
    spk_rec.append(spk)
    mem_rec.append(mem)
spk_loop, mem_loop = torch.stack(spk_rec), torch.stack(mem_rec)

# %% [markdown]
# The single-spike neuron takes the whole sequence, `(time, batch, features)`:

# %%
spk, mem = SingleSpikeLeaky(beta=0.9)(current)

# %% [markdown]
# Each neuron of the layer fires at the first spike of `snn.Leaky`, and is silent from then on. The
# membranes are the same until one step after this spike.

# %%
first = (spk_loop.cumsum(0) == 1) & (spk_loop == 1)
assert torch.equal(spk.bool(), first)
print(f"spikes: {int(spk_loop.sum())} in the loop, {int(spk.sum())} of single-spike neurons")

# %%
neuron = int(spk_loop.sum(0)[0].argmax())
figure, (top, middle, bottom) = plt.subplots(3, 1, sharex=True, figsize=(8, 7))
for axes, spikes, title in ((top, spk_loop, "snn.Leaky"), (middle, spk, "SingleSpikeLeaky")):
    steps, neurons = spikes[:, 0].nonzero().T
    axes.scatter(steps, neurons, s=8, color="black")
    axes.set(title=f"{title}: {len(steps)} spikes", ylabel="neuron")
bottom.plot(mem_loop[:, 0, neuron], label="snn.Leaky", color="gray")
bottom.plot(mem[:, 0, neuron].detach(), label="SingleSpikeLeaky", linestyle="--")
bottom.axhline(1, color="black", linewidth=0.5)
bottom.set(title=f"membrane of neuron {neuron}", xlabel="time step")
bottom.legend()
figure.tight_layout()
plt.show()

# %% [markdown]
# ## The gradient
#
# The gradient is that of backpropagation through time with the same surrogate. Below, one output
# neuron learns to fire at step 30.

# %%
x = (torch.rand(num_steps, 1, 20) < 0.1).float()
fc, lif = torch.nn.Linear(20, 1), SingleSpikeLeaky(beta=0.9, gradient="spike_time")
with torch.no_grad():
    fc.weight.fill_(0.1)
optimizer = torch.optim.Adam(fc.parameters(), lr=5e-3)
history = []
for _ in range(200):
    spikes, mem = lif(fc(x))
    steps = torch.arange(num_steps).view(-1, 1, 1)
    time = (spikes * steps).sum()
    loss = (time - 30) ** 2
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    history.append(time.item())
print(f"the neuron fires at step {history[-1]:.0f}; before training, at step {history[0]:.0f}")

# %%
plt.figure(figsize=(6, 3))
plt.plot(history)
plt.axhline(30, color="black", linewidth=0.5)
plt.xlabel("training step")
plt.ylabel("spike time")
plt.tight_layout()
plt.show()
