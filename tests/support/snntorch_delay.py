"""A stand-in for ``snntorch.SynapticDelay``, which no released snnTorch has yet.

It has the constructor, the attributes, the state and the results of the class on snnTorch's main
branch (pull request 453), written anew from its documentation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class SynapticDelay(nn.Module):
    """Each channel arrives ``delay`` steps later: one step a call, or a whole sequence."""

    def __init__(
        self,
        max_delay: int,
        delay: Any = 0.0,
        channels: int | None = None,
        learn_delay: bool = False,
        kernel: str = "linear",
        sigma: float = 1.0,
        step_mode: bool = True,
    ) -> None:
        super().__init__()
        self.step_mode, self.max_delay = step_mode, max_delay
        self.kernel, self.sigma, self.channels = kernel, sigma, channels
        value = torch.as_tensor(delay, dtype=torch.float32)
        if channels is not None and value.dim() == 0:
            value = value.expand(channels).clone()
        if learn_delay:
            self.delay = nn.Parameter(value)
        else:
            self.register_buffer("delay", value)
        self.learn_delay = learn_delay
        self.register_buffer("_buffer", torch.zeros(0), persistent=False)

    def reset_delay(self) -> Tensor:
        self._buffer = torch.zeros_like(self._buffer)
        return self._buffer

    def _shares(self, like: Tensor) -> Tensor:
        """The share (max_delay + 1, channels) of the input of each lag."""
        delay = self.delay.clamp(0, self.max_delay).to(like.dtype)
        lags = torch.arange(self.max_delay + 1, dtype=like.dtype).unsqueeze(1)
        apart = lags - delay.expand(like.shape[-1])
        if self.kernel == "gaussian":
            shares = torch.exp(-(apart**2) / (2 * self.sigma**2))
        else:
            shares = (1 - apart.abs()).clamp(min=0)
        return shares / shares.sum(0)

    def forward(self, input_: Tensor) -> Tensor:
        shares = self._shares(input_)
        if not self.step_mode:
            padded = torch.cat((input_.new_zeros(self.max_delay, *input_.shape[1:]), input_))
            steps = range(len(input_))
            windows = [padded[t : t + self.max_delay + 1].flip(0) for t in steps]
            return torch.stack([(w * shares.unsqueeze(1)).sum(0) for w in windows])
        if input_.dim() != 2:
            raise ValueError(f"step_mode=True expects (batch, channels), not {input_.shape}")
        length = self.max_delay + 1
        if self._buffer.shape != (length, *input_.shape):
            self._buffer = input_.new_zeros(length, *input_.shape)
        self._buffer = torch.cat((input_.unsqueeze(0), self._buffer[:-1]))
        return (self._buffer * shares.unsqueeze(1)).sum(0)


SynapticDelay.__module__ = "snntorch._neurons.synapticdelay"
