"""Channel mixers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmlk.layers import mlp_cpu
from mmlk.layers.conv import GELU, ConvNorm
from mmlk.layers.drop import DropPath
from mmlk.ops.blocked import BlockedWeights

_IDENTITY, _KEEP = nn.Identity(), DropPath()


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


class ConvNormMlp(nn.Sequential):
    """Pointwise MLP whose convolutions carry a norm each; submodules ``0`` and ``2``, GELU between.

    Args:
        channels: Input and output channels.
        hidden_channels: Channels between the two convolutions.
        bias: Whether the convolutions have a bias in front of the norm's.
        norm_cfg: Norm layer, as for `build_norm`.
    """

    def __init__(self, channels: int, hidden_channels: int, *, bias: bool, norm_cfg: dict):
        super().__init__(
            ConvNorm(channels, hidden_channels, bias=bias, norm_cfg=norm_cfg), GELU(),
            ConvNorm(hidden_channels, channels, bias=bias, norm_cfg=norm_cfg))
        self._blocked = BlockedWeights()

    def residual(self, x: Tensor, mixed: Tensor, norm: nn.Module = _IDENTITY,
                 drop_path: DropPath = _KEEP) -> Tensor:
        """``x + drop_path(mlp(norm(mixed)))``.

        On a CPU it is one autograd node in training and two products in a folded network.
        """
        if drop_path.rate == 0.0 or not drop_path.training:
            if mlp_cpu.trains_as_one(self, x, mixed, norm):
                return mlp_cpu.train(self, x, mixed, norm)
            if mlp_cpu.infers_as_two(self, x, mixed, norm):
                return mlp_cpu.infer(self, self._blocked, x, mixed)
        return x + drop_path(self(norm(mixed)))
