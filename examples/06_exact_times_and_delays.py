# %% [markdown]
# # 6. Exact spike times, and delays that are learned
#
# With `gradient="spike_time"` a spike has a time between two steps: where the straight line between
# two membranes meets the threshold. This time has an exact gradient, with respect to weights,
# decays, thresholds and delays.

# %%
import math

import matplotlib.pyplot as plt
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from snn_single_spike import LeakyReadout, SingleSpikeLinear, SpikeDelay, SpikeTimes, init
from snn_single_spike.experiments.yinyang import generate
from snn_single_spike.functional import delay_spikes, single_spike_linear

_ = torch.manual_seed(0)

# %% [markdown]
# One neuron with four inputs. Its membrane crosses the threshold between two steps.

# %%
num_steps, beta = 40, 0.9
spikes = SpikeTimes(torch.tensor([[4, 9, 15, 21]]), num_steps=num_steps)
weight = torch.tensor([[0.6, 0.5, 0.45, 0.55]], requires_grad=True)
out = single_spike_linear(spikes, weight, None, beta, gradient="spike_time")
(time,) = out.interpolated_times[0]
(slope,) = torch.autograd.grad(time, weight)
current = spikes.to_dense() @ weight.detach().T
membrane = LeakyReadout(beta, reduction=None)(current)[:, 0, 0]
print(f"spike at step {int(out.times)}, at the time {time:.3f}; d time / d weights = {slope[0]}")

figure, axes = plt.subplots(figsize=(8, 3))
axes.plot(membrane, marker=".", label="membrane without a reset")
axes.vlines(spikes.times[0], 0, 0.12, color="tab:green", label="input spikes")
axes.axhline(1, color="gray", linestyle=":", label="threshold")
axes.plot(time.item(), 1, "o", color="tab:red", label=f"spike at {time:.2f}")
axes.set(xlabel="time step", ylabel="membrane")
axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
figure.tight_layout()
plt.show()

# %% [markdown]
# A delay of the last input, in steps and fractions of a step. A spike that arrives between two
# steps is shared by them, so the time of the output spike is a continuous function of the delay,
# and autograd gives its slope. (The input is strong here. Two halves of a weak spike may not reach
# the threshold that the whole spike reaches.)

# %%
delays = torch.linspace(0, 6, 121, requires_grad=True)
last, strong = torch.tensor([0.0, 0.0, 0.0, 1.0]), torch.tensor([[0.5, 0.4, 0.3, 1.3]])
times = torch.stack(
    [
        single_spike_linear(
            delay_spikes(spikes, delay * last), strong, None, beta, gradient="spike_time"
        ).interpolated_times[0, 0]
        for delay in delays
    ]
)  # fmt: skip
(slopes,) = torch.autograd.grad(times.sum(), delays)

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3))
left.plot(delays.detach(), times.detach())
left.set(xlabel="delay of the last input", ylabel="time of the output spike")
right.plot(delays.detach(), slopes, label="autograd")
differences = times.detach().diff() / delays.detach().diff()
middle = (delays.detach()[1:] + delays.detach()[:-1]) / 2
right.plot(middle, differences, ".", markersize=3, label="finite differences")
right.set(xlabel="delay of the last input", ylabel="slope")
right.legend()
figure.tight_layout()
plt.show()

# %% [markdown]
# ## The Yin-Yang dataset with 30 hidden neurons
#
# Points of the plane are coded by the times of four spikes: x, y, 1 - x and 1 - y. Whether a hidden
# neuron fires depends on their order: it compares x and y. With a delay it compares x and y + c. So
# every input has eight axons here, and each axon learns its delay, as each hidden neuron does.
# Delays are numbers of steps, so they have their own learning rate.

# %%
num_steps, hidden, axons, epochs = 150, 30, 8, 12


def codes(points):
    times = ((1 - points) * 99).int()  # spikes begin within 100 steps of 150
    return SpikeTimes(times.repeat(1, axons), num_steps=num_steps)


x_train, y_train = map(torch.from_numpy, generate(3000, seed=42))
x_test, y_test = map(torch.from_numpy, generate(1000, seed=40))


class Net(nn.Module):
    def __init__(self, delays):
        super().__init__()
        first = {"delay": torch.rand(4 * axons) * 50, "learn_delay": True} if delays else {}
        self.hidden = SingleSpikeLinear(4 * axons, hidden, 0.92, gradient="spike_time", **first)
        second = SpikeDelay(hidden, torch.rand(hidden) * 20, learn_delay=True)
        self.delay = second if delays else nn.Identity()
        scale = init.readout_scale(0.95, num_steps)
        self.output = nn.Sequential(nn.Linear(hidden, 3), LeakyReadout(0.95, scale=4 * scale))
        nn.init.uniform_(self.hidden.weight, -0.7, 0.7)

    def forward(self, spikes):
        return self.output(self.delay(self.hidden(spikes)))


def fit(delays):
    torch.manual_seed(2)
    net = Net(delays)
    late = [p for name, p in net.named_parameters() if name.endswith("delay") or ".delay" in name]
    rest = [p for p in net.parameters() if all(p is not other for other in late)]
    optimizer = torch.optim.Adam([{"params": rest, "lr": 1e-2}, {"params": late, "lr": 0.2}])
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    history = []
    for _ in range(epochs):
        for index in torch.randperm(len(x_train)).split(60):
            loss = cross_entropy(net(codes(x_train[index])), y_train[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        scheduler.step()
        with torch.no_grad():
            right = net(codes(x_test)).argmax(1) == y_test
        history.append(right.float().mean().item())
    return net, history


nets, curves = zip(*(fit(delays) for delays in (False, True)), strict=True)
accuracy = curves[1][-1]
print(f"without delays {curves[0][-1]:.1%}, with delays {accuracy:.1%} of the test points")

# %%
figure, axes = plt.subplots(figsize=(5, 3))
for curve, label in zip(curves, ("weights", "weights and delays"), strict=True):
    axes.plot(range(1, epochs + 1), curve, marker="o", label=label)
axes.set(xlabel="epoch", ylabel="test accuracy")
axes.legend()
figure.tight_layout()
plt.show()

# %% [markdown]
# What the networks answer for each point of the plane, and the test points that they get wrong:

# %%
side = 120
grid = torch.linspace(0, 1, side)
y, x = torch.meshgrid(grid, grid, indexing="ij")
plane = torch.stack((x, y, 1 - x, 1 - y), -1).flatten(0, 1)
inside = torch.hypot(x - 0.5, y - 0.5) <= 0.5
figure, panels = plt.subplots(1, 2, figsize=(8, 4))
for axes, net, label in zip(panels, nets, ("weights", "weights and delays"), strict=True):
    with torch.no_grad():
        answers = net(codes(plane)).argmax(1).view(side, side).float()
        wrong = net(codes(x_test)).argmax(1) != y_test
    answers[~inside] = math.nan
    axes.imshow(answers, origin="lower", extent=(0, 1, 0, 1), cmap="Pastel1", vmin=0, vmax=8)
    axes.scatter(*x_test[wrong, :2].T, s=8, color="black")
    axes.set(title=f"{label}: {wrong.sum()} of {len(wrong)} wrong", xticks=[], yticks=[])
figure.tight_layout()
plt.show()

# %% [markdown]
# The delays of the axons after training, and the hidden spikes of one sample:

# %%
net = nets[1]
with torch.no_grad():
    sent = net.hidden(codes(x_test[:1]))
    arrive = net.delay(sent)
fires = (sent.times[0] >= 0).nonzero()[:, 0]
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
for name, learned in zip(
    ("x", "y", "1 - x", "1 - y"), net.hidden.delay.view(axons, 4).T, strict=True
):
    left.plot(learned.detach().clamp(min=0).sort().values, [name] * axons, "o", alpha=0.6)
left.set(xlabel="learned delays in steps", ylabel="axons of the input")
right.scatter(sent.interpolated_times[0, fires], fires, s=14, label="sent")
late = arrive.interpolated_times[0, fires]
right.scatter(late[late >= 0], fires[late >= 0], s=14, label="arrive at the readout")
right.set(xlabel="time", ylabel="hidden neuron")
right.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2)
figure.tight_layout()
plt.show()
