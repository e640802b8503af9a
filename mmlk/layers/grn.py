"""Channel mixer with squeeze-excitation and global response norm, as UniRepLKNet has it."""

from __future__ import annotations

import copy
from collections import OrderedDict

import torch
from torch import Tensor, nn

from mmlk.layers.fold import fold_norm_after, has_affine_form
from mmlk.layers.linear import FoldedLinear
from mmlk.layers.norm import build_norm


class SqueezeExcitation(nn.Module):
    """Each channel times a factor that depends on the means of all (Hu et al., CVPR 2018).

    Args:
        channels: Channels C.
        hidden_channels: Channels between the layers ``down`` and ``up``.
    """

    def __init__(self, channels: int, hidden_channels: int):
        super().__init__()
        self.down = nn.Conv2d(channels, hidden_channels, 1)
        self.up = nn.Conv2d(hidden_channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        return x * self.up(self.down(x.mean((2, 3), keepdim=True)).relu()).sigmoid()


class GlobalResponseNorm(nn.Module):
    """``x + gamma * x * g / (mean(g) + 1e-6) + beta`` (Woo et al., CVPR 2023).

    ``g`` is the Euclidean norm of a channel over the map, ``mean(g)`` that of all channels.

    Args:
        channels: Channels C; ``gamma`` and ``beta`` are (1, 1, 1, C).
    """

    EPS = 1e-6

    def __init__(self, channels: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, 1, 1, channels))
        self.beta: nn.Parameter | None = nn.Parameter(torch.zeros(1, 1, 1, channels))

    def forward(self, x: Tensor) -> Tensor:
        """(N, H, W, C) to the same shape."""
        response = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
        response = response / (response.mean(-1, keepdim=True) + self.EPS)
        y = x * (1 + self.gamma * response)
        return y if self.beta is None else y + self.beta


class _ToLastAxis(nn.Module):
    """(N, C, H, W) to (N, H, W, C), a view."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)


class _FromLastAxis(nn.Module):
    """(N, H, W, C) to (N, C, H, W), a view."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 3, 1, 2)


class GRNMlp(nn.Sequential):
    """Squeeze-excitation, linear layer, GELU, global response norm, linear layer, norm.

    The names are those of UniRepLKNet's files: ``se``, ``pwconv1.1``, ``act.1``, ``pwconv2.0``,
    ``pwconv2.2``.

    Args:
        channels: Input and output channels.
        hidden_channels: Channels between the linear layers.
        squeezed_channels: Channels inside the squeeze-excitation.
        norm_cfg: Norm layer, as for `build_norm`.
    """

    def __init__(
        self, channels: int, hidden_channels: int, squeezed_channels: int, *, norm_cfg: dict
    ):
        super().__init__(
            OrderedDict(
                se=SqueezeExcitation(channels, squeezed_channels),
                pwconv1=nn.Sequential(_ToLastAxis(), nn.Linear(channels, hidden_channels)),
                act=nn.Sequential(nn.GELU(), GlobalResponseNorm(hidden_channels)),
                pwconv2=nn.Sequential(
                    nn.Linear(hidden_channels, channels, bias=False),
                    _FromLastAxis(),
                    build_norm(norm_cfg, channels),
                ),
            )
        )

    def fold(self) -> None:
        """Fold the norm and the shift of the response norm, and prepare the products for inference."""
        fold_grn_mlp(self.pwconv1, self.act, self.pwconv2)


@torch.no_grad()
def fold_grn_mlp(first: nn.Sequential, act: nn.Sequential, last: nn.Sequential) -> None:
    """Fold, in place, what stands behind the squeeze-excitation of a `GRNMlp`.

    Args:
        first: Its ``pwconv1``.
        act: Its ``act``, which gives up its shift.
        last: Its ``pwconv2``, which takes the shift and its own norm into the linear layer.
    """
    response, (linear, _, norm) = act[1], last
    shift = linear.weight.double() @ response.beta.double().flatten()
    folded = copy.deepcopy(linear)
    folded.bias = nn.Parameter(shift.to(linear.weight.dtype))
    response.beta = None
    if has_affine_form(norm):
        folded, last[2] = fold_norm_after(folded, norm), nn.Identity()
    first[1], act[0] = FoldedLinear(first[1], gelu=True), nn.Identity()
    last[0] = FoldedLinear(folded)
