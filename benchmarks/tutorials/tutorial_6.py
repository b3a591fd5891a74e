"""The structure of snnTorch's tutorial 6: a convolutional network, one step a call."""

import snntorch as snn
import snntorch.functional as SF
import torch
from snntorch import surrogate, utils
from torch import nn

from benchmarks.tutorials.setting import device, epochs, fashion_mnist

train_loader, test_loader = fashion_mnist(batch_size=64)

spike_grad = surrogate.fast_sigmoid(slope=25)
beta = 0.5
num_steps = 50

net = nn.Sequential(
    nn.Conv2d(1, 12, 5),
    nn.MaxPool2d(2),
    snn.Leaky(beta=beta, spike_grad=spike_grad, init_hidden=True),
    nn.Conv2d(12, 64, 5),
    nn.MaxPool2d(2),
    snn.Leaky(beta=beta, spike_grad=spike_grad, init_hidden=True),
    nn.Flatten(),
    nn.Linear(64 * 4 * 4, 10),
    snn.Leaky(beta=beta, spike_grad=spike_grad, init_hidden=True, output=True),
).to(device)


def forward_pass(net, num_steps, data):
    mem_rec = []
    spk_rec = []
    utils.reset(net)
    for step in range(num_steps):
        spk_out, mem_out = net(data)
        spk_rec.append(spk_out)
        mem_rec.append(mem_out)
    return torch.stack(spk_rec), torch.stack(mem_rec)


loss_fn = SF.ce_rate_loss()
optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)

for epoch in range(epochs):
    for data, targets in train_loader:
        data, targets = data.to(device), targets.to(device)
        net.train()
        spk_rec, mem_rec = forward_pass(net, num_steps, data)
        loss_val = loss_fn(spk_rec, targets)
        optimizer.zero_grad()
        loss_val.backward()
        optimizer.step()

total, correct = 0, 0
with torch.no_grad():
    net.eval()
    for data, targets in test_loader:
        data, targets = data.to(device), targets.to(device)
        spk_rec, mem_rec = forward_pass(net, num_steps, data)
        correct += SF.accuracy_rate(spk_rec, targets) * spk_rec.size(1)
        total += spk_rec.size(1)
accuracy = correct / total
