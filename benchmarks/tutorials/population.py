"""The structure of snnTorch's population tutorial: fifty output neurons a class, one time step."""

import snntorch as snn
import snntorch.functional as SF
import torch
from snntorch import surrogate, utils
from torch import nn

from benchmarks.tutorials.setting import device, epochs, fashion_mnist

train_loader, test_loader = fashion_mnist(batch_size=128)

spike_grad = surrogate.fast_sigmoid()
num_hidden = 128
pop_outputs = 500
beta = 0.9
num_steps = 1

net = nn.Sequential(
    nn.Flatten(),
    nn.Linear(28 * 28, num_hidden),
    snn.Leaky(beta=beta, spike_grad=spike_grad, init_hidden=True),
    nn.Linear(num_hidden, pop_outputs),
    snn.Leaky(beta=beta, spike_grad=spike_grad, init_hidden=True, output=True),
).to(device)


def forward_pass(net, num_steps, data):
    spk_rec = []
    utils.reset(net)
    for step in range(num_steps):
        spk_out, mem_out = net(data)
        spk_rec.append(spk_out)
    return torch.stack(spk_rec)


loss_fn = SF.mse_count_loss(
    correct_rate=1.0, incorrect_rate=0.0, population_code=True, num_classes=10
)
optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)

for epoch in range(epochs):
    for data, targets in train_loader:
        data, targets = data.to(device), targets.to(device)
        net.train()
        spk_rec = forward_pass(net, num_steps, data)
        loss_val = loss_fn(spk_rec, targets)
        optimizer.zero_grad()
        loss_val.backward()
        optimizer.step()

total, correct = 0, 0
with torch.no_grad():
    net.eval()
    for data, targets in test_loader:
        data, targets = data.to(device), targets.to(device)
        spk_rec = forward_pass(net, num_steps, data)
        found = SF.accuracy_rate(spk_rec, targets, population_code=True, num_classes=10)
        correct += found * spk_rec.size(1)
        total += spk_rec.size(1)
accuracy = correct / total
