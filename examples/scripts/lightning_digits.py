"""A single-spike network in a LightningModule.

pip install lightning scikit-learn
python examples/scripts/lightning_digits.py
"""

import lightning as L
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from snn_single_spike import LeakyReadout, SingleSpikeLinear, SpikeTimes

num_steps, epochs = 50, 4


class Digits(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            SingleSpikeLinear(64, 100, beta=0.9),
            nn.Linear(100, 10),
            LeakyReadout(0.95),
        )

    def training_step(self, batch, _):
        pixels, labels = batch
        # Made here, on the device of the batch: the brighter, the earlier
        times = ((1 - pixels) * (num_steps - 1)).int().masked_fill(pixels == 0, -1)
        scores = self.net(SpikeTimes(times, num_steps=num_steps))
        self.log("accuracy", (scores.argmax(1) == labels).float().mean(), prog_bar=True)
        return cross_entropy(scores, labels)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=5e-3)


L.seed_everything(0)
digits = load_digits()
data = TensorDataset(
    torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
)
trainer = L.Trainer(
    max_epochs=epochs,
    accelerator="auto",
    devices=1,
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
)
trainer.fit(Digits(), DataLoader(data, batch_size=32, shuffle=True))
accuracy = trainer.callback_metrics["accuracy"].item()
print(f"{accuracy:.1%} of the last training batch are right")
