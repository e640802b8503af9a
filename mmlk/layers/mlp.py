"""Channel mixers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmlk.layers import mlp_cpu, normed_mlp_cpu
from mmlk.layers.conv import GELU, ConvNorm
from mmlk.layers.drop import DropPath
from mmlk.layers.eager_cpu import unobserved
from mmlk.layers.linear import FoldedLinear, FoldedPointwiseConv2d
from mmlk.ops import channel_mlp, channel_mlp_reference, dispatch
from mmlk.ops.blocked import BlockedWeights, KeepsBlockedWeights

_IDENTITY, _KEEP = nn.Identity(), DropPath()


def add_normed_mlp(
    x: Tensor,
    mixed: Tensor,
    norm: nn.Module,
    first: nn.Module,
    act: nn.Module,
    second: nn.Module,
    scale: Tensor | None,
    drop_path: DropPath,
) -> Tensor:
    """``x + drop_path(scale * second(act(first(norm(mixed)))))``, the layers on the channels.

    On a CPU it is one autograd node in training, and a folded second layer adds the residual.

    Args:
        x: (N, C, H, W).
        mixed: (N, C, H, W).
        norm: Layer norm over the last axis.
        first: Linear layer.
        act: Activation.
        second: Linear layer.
        scale: Factor per output channel.
        drop_path: Applied to the sum's second term.
    """
    if normed_mlp_cpu.trains_as_one(x, mixed, norm, first, act, second, scale, drop_path):
        return normed_mlp_cpu.train(x, mixed, norm, first, second, scale, drop_path)
    y = norm(mixed.permute(0, 2, 3, 1))
    if type(second) is FoldedLinear and scale is None and _keeps(drop_path):
        return second(act(first(y)), x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    return x + drop_path(mix_channels(y, first, act, second, scale).permute(0, 3, 1, 2))


def _keeps(drop_path: DropPath) -> bool:
    return drop_path.rate == 0.0 or not drop_path.training


def mix_channels(
    x: torch.Tensor,
    first: nn.Module,
    act: nn.Module,
    second: nn.Module,
    scale: torch.Tensor | None = None,
) -> torch.Tensor:
    """``scale * second(act(first(x)))`` on the last axis, in one operator if the modules are plain.

    Args:
        x: (..., C).
        first: Linear layer.
        act: Activation; one operator computes the exact GELU only.
        second: Linear layer.
        scale: Factor per output channel.
    """
    if _one_operator(first, act, second, nn.Linear):
        return channel_mlp(x, first.weight, first.bias, second.weight, second.bias, scale)
    y = second(act(first(x)))
    return y if scale is None else y * scale


def _one_operator(first: nn.Module, act: nn.Module, second: nn.Module, kind: type) -> bool:
    """Whether nothing but the parameters of two layers matters.

    A subclass, as sharding and quantisation make them, and a hook want the layer to be called.
    """
    return (
        type(first) is type(second) is kind
        and type(act) is nn.GELU
        and act.approximate == 'none'
        and first.bias is not None
        and second.bias is not None
        and unobserved(first, act, second)
    )


def _scaled(y: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    return y if scale is None else y * scale.reshape(1, -1, 1, 1)


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

    def forward(self, x: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
        """``scale * mlp(x)``, with ``scale`` (C,) left out if None."""
        first, second = self.fc1, self.fc2
        if not _one_operator(first, self.act, second, nn.Conv2d):
            return _scaled(second(self.act(first(x))), scale)
        run = dispatch.choose(
            'channel_mlp', x, first.weight, first.bias, second.weight, second.bias, scale
        )
        if run is not channel_mlp_reference:
            y = run(
                x.permute(0, 2, 3, 1),
                first.weight.flatten(1),
                first.bias,
                second.weight.flatten(1),
                second.bias,
                scale,
            )
            return y.permute(0, 3, 1, 2)
        # Elsewhere convolutions spare a contiguous map two transpositions.
        return _scaled(second(self.act(first(x))), scale)

    def residual(
        self, x: Tensor, mixed: Tensor, scale: Tensor | None, drop_path: DropPath
    ) -> Tensor:
        """``x + drop_path(scale * mlp(mixed))``, the sum by a folded second convolution if it can."""
        if type(self.fc2) is FoldedPointwiseConv2d and scale is None and _keeps(drop_path):
            return self.fc2(self.act(self.fc1(mixed)), x)
        return x + drop_path(self(mixed, scale))

    def fold(self) -> None:
        """Prepare for inference, when the weights are final."""
        self.fc1, self.act = FoldedPointwiseConv2d(self.fc1, gelu=True), nn.Identity()
        self.fc2 = FoldedPointwiseConv2d(self.fc2)


class ConvNormMlp(KeepsBlockedWeights, nn.Sequential):
    """Pointwise MLP whose convolutions carry a norm each; submodules ``0`` and ``2``, GELU between.

    Args:
        channels: Input and output channels.
        hidden_channels: Channels between the two convolutions.
        bias: Whether the convolutions have a bias in front of the norm's.
        norm_cfg: Norm layer, as for `build_norm`.
    """

    def __init__(self, channels: int, hidden_channels: int, *, bias: bool, norm_cfg: dict):
        super().__init__(
            ConvNorm(channels, hidden_channels, bias=bias, norm_cfg=norm_cfg),
            GELU(),
            ConvNorm(hidden_channels, channels, bias=bias, norm_cfg=norm_cfg),
        )
        self._blocked = BlockedWeights()

    def residual(
        self, x: Tensor, mixed: Tensor, norm: nn.Module = _IDENTITY, drop_path: DropPath = _KEEP
    ) -> Tensor:
        """``x + drop_path(mlp(norm(mixed)))``.

        On a CPU it is one autograd node in training and two products in a folded network.
        """
        if _keeps(drop_path):
            if mlp_cpu.trains_as_one(self, x, mixed, norm):
                return mlp_cpu.train(self, x, mixed, norm)
            if mlp_cpu.infers_as_two(self, x, mixed, norm):
                return mlp_cpu.infer(self, self._blocked, x, mixed)
        return x + drop_path(self(norm(mixed)))
