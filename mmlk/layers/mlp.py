"""Channel mixers."""

from __future__ import annotations

import torch
from torch import nn


class ConvMlp(nn.Module):
    """Pointwise MLP on an (N, C, H, W) map: 1x1 convolution, exact GELU, 1x1 convolution.

    Args:
        channels: Input and output channels.
        hidden_channels: Channels between the two convolutions.
    """

    def __init__(self, channels: int, hidden_channels: int):
        super().__init__()
        self.fc1 = nn.Conv2d(channels, hidden_channels, 1)
        self.act = nn.GELU()
        self.fc2 = nn.Conv2d(hidden_channels, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act(self.fc1(x)))
