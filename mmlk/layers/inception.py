"""Inception depthwise convolution without some of its branches, as InceptionNeXt's paper ablates it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mmlk.ops import DepthwiseConv2d, InceptionDWConv2d

BRANCHES = dict(square='dwconv_hw', horizontal='dwconv_w', vertical='dwconv_h')
"""Branches in the order of their channels, and the published names of their convolutions."""


class PartialInceptionDWConv2d(nn.Module):
    """`InceptionDWConv2d` of which some branches are left out; their channels pass unchanged.

    Weights have the names and shapes of the whole operator's.

    Args:
        in_channels: Channels C of input and output.
        branches: Those that stay, of ``square``, ``horizontal`` and ``vertical``.
        options: Further arguments of `InceptionDWConv2d`.

    Raises:
        ValueError: If a branch is unknown, or an option is one that `InceptionDWConv2d` refuses.
    """

    def __init__(self, in_channels: int, branches: Sequence[str], **options: Any):
        super().__init__()
        whole = InceptionDWConv2d(in_channels, **options)
        self.in_channels = in_channels
        self.branch_channels = whole.branch_channels
        self.branches = tuple(name for name in BRANCHES if name in branches)
        if set(branches) != set(self.branches):
            raise ValueError(
                f'InceptionDWConv2d: branches {tuple(branches)} must be of {", ".join(BRANCHES)}'
            )
        for branch in self.branches:
            size = getattr(whole, BRANCHES[branch]).kernel_size
            setattr(self, BRANCHES[branch], DepthwiseConv2d(self.branch_channels, size))

    def forward(self, x: Tensor) -> Tensor:
        g = self.branch_channels
        rest, *parts = x.split((self.in_channels - 3 * g, g, g, g), 1)
        convolved = (
            getattr(self, name)(part) if branch in self.branches else part
            for (branch, name), part in zip(BRANCHES.items(), parts)
        )
        return torch.cat((rest, *convolved), 1)

    def extra_repr(self) -> str:
        return (
            f'{self.branch_channels} channels in each of {", ".join(self.branches) or "no branch"}'
        )
