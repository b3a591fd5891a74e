"""The structure of snnTorch's tutorial 7: a convolutional network on N-MNIST, a frame a step."""

import snntorch as snn
import snntorch.functional as SF
import torch
from snntorch import surrogate, utils
from torch import nn

from benchmarks.tutorials.setting import device, epochs, nmnist

# The tutorial has frames of 1 ms; these have 10 ms, for a run in minutes.
train_loader, test_loader = nmnist(batch_size=16, time_window=10_000)

spike_grad = surrogate.atan()
beta = 0.5

net = nn.Sequential(
    nn.Conv2d(2, 12, 5),
    nn.MaxPool2d(2),
    snn.Leaky(beta=beta, spike_grad=spike_grad, init_hidden=True),
    nn.Conv2d(12, 32, 5),
    nn.MaxPool2d(2),
    snn.Leaky(beta=beta, spike_grad=spike_grad, init_hidden=True),
    nn.Flatten(),
    nn.Linear(32 * 5 * 5, 10),
    snn.Leaky(beta=beta, spike_grad=spike_grad, init_hidden=True, output=True),
).to(device)


def forward_pass(net, data):
    spk_rec = []
    utils.reset(net)
    for step in range(data.size(0)):
        spk_out, mem_out = net(data[step])
        spk_rec.append(spk_out)
    return torch.stack(spk_rec)


loss_fn = SF.mse_count_loss(correct_rate=0.8, incorrect_rate=0.2)
optimizer = torch.optim.Adam(net.parameters(), lr=2e-2)

for epoch in range(epochs):
    for data, targets in train_loader:
        data, targets = data.to(device), targets.to(device)
        net.train()
        spk_rec = forward_pass(net, data)
        loss_val = loss_fn(spk_rec, targets)
        optimizer.zero_grad()
        loss_val.backward()
        optimizer.step()

total, correct = 0, 0
with torch.no_grad():
    net.eval()
    for data, targets in test_loader:
        data, targets = data.to(device), targets.to(device)
        spk_rec = forward_pass(net, data)
        correct += SF.accuracy_rate(spk_rec, targets) * spk_rec.size(1)
        total += spk_rec.size(1)
accuracy = correct / total
