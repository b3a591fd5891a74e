"""Data parallel training in several processes.

    torchrun --nproc-per-node 2 examples/scripts/torchrun_digits.py

Each process trains on its share of every batch, and `DistributedDataParallel` averages the
gradients. On GPUs each process takes the one of its rank.
"""

import os

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from snn_single_spike import LeakyReadout, SingleSpikeLinear, SpikeTimes

num_steps, epochs = 50, 4
gpu = torch.cuda.is_available()
rank = int(os.environ["LOCAL_RANK"])
device = torch.device("cuda", rank) if gpu else torch.device("cpu")
dist.init_process_group("nccl" if gpu else "gloo")
torch.manual_seed(0)


def train() -> None:
    digits = load_digits()
    data = TensorDataset(
        torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    )
    sampler = DistributedSampler(data, seed=0)
    net = nn.Sequential(
        SingleSpikeLinear(64, 100, beta=0.9), nn.Linear(100, 10), LeakyReadout(0.95)
    ).to(device)
    parallel = DistributedDataParallel(net)
    optimizer = torch.optim.Adam(parallel.parameters(), lr=5e-3)

    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        right = torch.zeros((), device=device)
        for pixels, labels in DataLoader(data, batch_size=16, sampler=sampler):
            pixels, labels = pixels.to(device), labels.to(device)
            times = ((1 - pixels) * (num_steps - 1)).int().masked_fill(pixels == 0, -1)
            scores = parallel(SpikeTimes(times, num_steps=num_steps))
            loss = cross_entropy(scores, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            right += (scores.argmax(1) == labels).sum()
        dist.all_reduce(right)

    # Every process has the same weights.
    total = torch.stack([p.detach().double().sum() for p in net.parameters()]).sum()
    totals = [torch.zeros_like(total) for _ in range(dist.get_world_size())]
    dist.all_gather(totals, total)
    assert all(torch.equal(total, other) for other in totals)
    if rank == 0:
        accuracy = right.item() / len(sampler) / dist.get_world_size()
        print(f"{dist.get_world_size()} processes: {accuracy:.1%} of the training digits are right")


train()
# While this waits, the threads of gloo release the last tensors. They abort the process if the
# interpreter has ended by then.
dist.barrier()
dist.destroy_process_group()
