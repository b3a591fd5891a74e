"""The structure of snnTorch's tutorial 5: a fully connected network, its loop inside forward."""

import snntorch as snn
import torch
from torch import nn

from benchmarks.tutorials.setting import device, epochs, fashion_mnist

train_loader, test_loader = fashion_mnist(batch_size=128)

num_inputs = 28 * 28
num_hidden = 1000
num_outputs = 10
num_steps = 25
beta = 0.95


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(num_inputs, num_hidden)
        self.lif1 = snn.Leaky(beta=beta)
        self.fc2 = nn.Linear(num_hidden, num_outputs)
        self.lif2 = snn.Leaky(beta=beta)

    def forward(self, x):
        mem1 = self.lif1.init_leaky()
        mem2 = self.lif2.init_leaky()
        spk2_rec = []
        mem2_rec = []
        for step in range(num_steps):
            cur1 = self.fc1(x)
            spk1, mem1 = self.lif1(cur1, mem1)
            cur2 = self.fc2(spk1)
            spk2, mem2 = self.lif2(cur2, mem2)
            spk2_rec.append(spk2)
            mem2_rec.append(mem2)
        return torch.stack(spk2_rec, dim=0), torch.stack(mem2_rec, dim=0)


net = Net().to(device)
loss = nn.CrossEntropyLoss()
optimizer = torch.optim.Adam(net.parameters(), lr=5e-4)

for epoch in range(epochs):
    for data, targets in train_loader:
        data, targets = data.to(device), targets.to(device)
        net.train()
        spk_rec, mem_rec = net(data.flatten(1))
        loss_val = torch.zeros(1, device=device)
        for step in range(num_steps):
            loss_val = loss_val + loss(mem_rec[step], targets)
        optimizer.zero_grad()
        loss_val.backward()
        optimizer.step()

total, correct = 0, 0
with torch.no_grad():
    net.eval()
    for data, targets in test_loader:
        data, targets = data.to(device), targets.to(device)
        spk_rec, mem_rec = net(data.flatten(1))
        _, predicted = spk_rec.sum(dim=0).max(1)
        total += targets.size(0)
        correct += (predicted == targets).sum().item()
accuracy = correct / total
