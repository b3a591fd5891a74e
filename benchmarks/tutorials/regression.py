"""The structure of snnTorch's regression tutorial, part 1: a membrane follows a square root."""

import snntorch as snn
import torch
from torch import nn

from benchmarks.tutorials.setting import curves, device, epochs

train_loader, test_loader = curves(batch_size=32, num_steps=50)

hidden = 128


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc_in = nn.Linear(1, hidden)
        self.lif_in = snn.Leaky(beta=0.9, learn_beta=True, learn_threshold=True)
        self.fc_hidden = nn.Linear(hidden, hidden)
        self.lif_hidden = snn.Leaky(beta=0.9, learn_beta=True, learn_threshold=True)
        self.fc_out = nn.Linear(hidden, 1)
        self.li_out = snn.Leaky(beta=0.9, learn_beta=True, reset_mechanism="none")

    def forward(self, x):
        mem_1 = self.lif_in.init_leaky()
        mem_2 = self.lif_hidden.init_leaky()
        mem_3 = self.li_out.init_leaky()
        mem_rec = []
        for step in range(x.size(0)):
            spk_1, mem_1 = self.lif_in(self.fc_in(x[step]), mem_1)
            spk_2, mem_2 = self.lif_hidden(self.fc_hidden(spk_1), mem_2)
            _, mem_3 = self.li_out(self.fc_out(spk_2), mem_3)
            mem_rec.append(mem_3)
        return torch.stack(mem_rec)


net = Net().to(device)
loss_fn = nn.MSELoss()
optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)

for epoch in range(epochs):
    for feature, label in train_loader:
        feature, label = feature.to(device), label.to(device)
        net.train()
        mem = net(feature)
        loss_val = loss_fn(mem, label)
        optimizer.zero_grad()
        loss_val.backward()
        optimizer.step()

total, error = 0, 0.0
with torch.no_grad():
    net.eval()
    for feature, label in test_loader:
        feature, label = feature.to(device), label.to(device)
        mem = net(feature)
        error += (mem - label).abs().sum().item()
        total += label.numel()
error /= total
