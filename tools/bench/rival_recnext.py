"""RecNeXt's M and A series as the authors compose them, from torch's own layers and calls."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

DIMS, DEPTHS = (64, 128, 256, 512), (3, 3, 13, 2)
_EPSILON = 1e-6


def _conv(channels: int, out: int, kernel: int, stride: int, groups: int) -> nn.Conv2d:
    return nn.Conv2d(channels, out, kernel, stride, kernel // 2, groups=groups, bias=False)


class ConvNorm(nn.Module):
    """A convolution without bias, and its batch norm."""

    def __init__(self, channels: int, out: int, kernel: int = 1, stride: int = 1, groups: int = 1):
        super().__init__()
        self.conv = _conv(channels, out, kernel, stride, groups)
        self.norm = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))

    def fuse(self) -> nn.Conv2d:
        """The convolution with the norm's statistics in its kernel and bias."""
        return nn.utils.fuse_conv_bn_eval(self.conv, self.norm)


class RecConv(nn.Module):
    """Down by one kernel, up by interpolation, a kernel and a sum per level."""

    def __init__(self, channels: int, level: int):
        super().__init__()
        self.down = _conv(channels, channels, 5, 2, channels)
        self.convs = nn.ModuleList(
            _conv(channels, channels, 5, 1, channels) for _ in range(level + 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        maps = [x]
        for _ in self.convs[1:]:
            maps.append(self.down(maps[-1]))
        merged = 0
        for conv, coarse, fine in zip(self.convs, maps[:0:-1], maps[-2::-1]):
            merged = F.interpolate(conv(coarse + merged), size=fine.shape[2:], mode='bilinear')
        return self.convs[-1](x + merged)


class LinearAttention(nn.Module):
    """Linear attention in the authors' order of products, plus its positional convolution."""

    def __init__(self, channels: int, stage: int):
        super().__init__()
        self.heads, self.by_pixels = 2 ** (stage + 1), stage == 3
        self.qk = ConvNorm(channels, 2 * channels, groups=2)
        self.pe = ConvNorm(channels, channels, 3, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        shape, scale = (n, self.heads, c // self.heads, h * w), (h * w) ** -0.5
        query, key = (each.reshape(shape) for each in (F.elu(self.qk(x)) + 1).chunk(2, 1))
        query, value = query.transpose(-1, -2), x.reshape(shape).transpose(-1, -2)
        if self.by_pixels:
            weights = (query * scale) @ (key * scale)
            mixed = weights / (weights.sum(-1, keepdim=True) + _EPSILON) @ value
        else:
            mixed = query @ ((key * scale) @ (value * scale))
            mixed = mixed / (query @ key.mean(-1, keepdim=True) + _EPSILON)
        return mixed.transpose(-1, -2).reshape(n, c, h, w) + self.pe(x)


class RecAttn(nn.Module):
    """Attention on the halved map, added back by nearest interpolation."""

    def __init__(self, channels: int, stage: int):
        super().__init__()
        self.down = nn.Sequential(
            ConvNorm(channels, channels, 5, 2, channels), LinearAttention(channels, stage)
        )
        self.conv = ConvNorm(channels, channels, 5, 1, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x + F.interpolate(self.down(x), size=x.shape[2:], mode='nearest'))


def _mixer(channels: int, ratio: float) -> nn.Sequential:
    hidden = int(channels * ratio)
    return nn.Sequential(ConvNorm(channels, hidden), nn.GELU(), ConvNorm(hidden, channels))


class Block(nn.Module):
    """Token mixer, its norm (M series) and channel mixer in one residual branch."""

    def __init__(self, channels: int, stage: int, series: str, ratio: float):
        super().__init__()
        recursive = series == 'm'
        self.token_mixer = RecConv(channels, 4 - stage) if recursive else RecAttn(channels, stage)
        self.norm = nn.BatchNorm2d(channels) if recursive else nn.Identity()
        self.channel_mixer = _mixer(channels, ratio)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.channel_mixer(self.norm(self.token_mixer(x)))


class Downsample(nn.Module):
    """A grouped 7x7 convolution that doubles the channels, its norm, and a residual mixer."""

    def __init__(self, channels: int, ratio: float):
        super().__init__()
        self.token_mixer = nn.Conv2d(channels, 2 * channels, 7, 2, 3, groups=channels)
        self.norm = nn.BatchNorm2d(2 * channels)
        self.channel_mixer = _mixer(2 * channels, ratio)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.token_mixer(x))
        return x + self.channel_mixer(x)


class Network(nn.Module):
    """Stem and four stages; returns the raw output of each stage."""

    def __init__(self, series: str, dims: Sequence[int], depths: Sequence[int], ratio: float):
        super().__init__()
        self.stem = nn.Sequential(
            ConvNorm(3, dims[0] // 2, 3, 2), nn.GELU(), ConvNorm(dims[0] // 2, dims[0], 3, 2)
        )
        self.stages = nn.ModuleList()
        for stage, (channels, depth) in enumerate(zip(dims, depths)):
            down = [Downsample(channels // 2, ratio)] if stage else []
            blocks = [Block(channels, stage, series, ratio) for _ in range(depth)]
            self.stages.append(nn.Sequential(*down, *blocks))

    def forward(self, x: Tensor) -> list[Tensor]:
        x, outputs = self.stem(x), []
        for stage in self.stages:
            x = stage(x)
            outputs.append(x)
        return outputs

    def fuse(self) -> Network:
        """As the authors' own: every `ConvNorm` becomes one convolution, other norms stay."""
        _fuse(self.eval())
        return self


def _fuse(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, ConvNorm):
            setattr(module, name, child.fuse())
        else:
            _fuse(child)


def recnext(
    series: str = 'm', dims: Sequence[int] = DIMS, depths: Sequence[int] = DEPTHS
) -> Network:
    """M3 (``series`` 'm') or A3 ('a') unless told otherwise."""
    return Network(series, dims, depths, 2 if series == 'm' else 1.875)
