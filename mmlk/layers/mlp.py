"""Channel mixers."""

from __future__ import annotations

from torch import Tensor, nn

from mmlk.layers.conv import GELU, ConvNorm
from mmlk.layers.drop import DropPath
from mmlk.layers.linear import FoldedLinear, FoldedPointwiseConv2d
from mmlk.ops import PointwiseConv2d, channel_mlp, dispatch
from mmlk.ops.modules import NotScriptable, can_stand_for, own_batch, pads_evenly

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

    A folded second layer adds the residual.

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
    y = norm(mixed.permute(0, 2, 3, 1))
    if _adds(second, FoldedLinear) and scale is None and _keeps(drop_path):
        return second(act(first(y)), x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    if _is_mlp(first, act, second, nn.Linear):
        y = channel_mlp(y, first.weight, first.bias, second.weight, second.bias, scale)
    else:
        y = second(act(first(y)))
        y = y if scale is None else y * scale
    return x + drop_path(y.permute(0, 3, 1, 2))


def _keeps(drop_path: DropPath) -> bool:
    """Whether stochastic depth changes nothing."""
    return (
        type(drop_path) is DropPath
        and (drop_path.rate == 0.0 or not drop_path.training)
        and can_stand_for(drop_path)
    )


def _adds(layer: nn.Module, kind: type) -> bool:
    """Whether a folded layer may add the residual."""
    return type(layer) is kind and can_stand_for(layer)


def _is_mlp(first: nn.Module, act: nn.Module, second: nn.Module, kind: type) -> bool:
    """Whether nothing but the parameters of two layers matters."""
    return (
        type(first) is type(second) is kind
        and type(act) is nn.GELU
        and act.approximate == 'none'
        and first.bias is not None
        and second.bias is not None
        and can_stand_for(first, act, second)
    )


def _is_plain_pair(*convolutions: nn.Conv2d) -> bool:
    """Whether they are 1x1 convolutions of stride 1 in one group."""
    return all(
        each.kernel_size == each.stride == (1, 1) and each.groups == 1 and pads_evenly(each)
        for each in convolutions
    )


def _times(y: Tensor, scale: Tensor | None) -> Tensor:
    return y if scale is None else y * scale.reshape(1, -1, 1, 1)


def add_conv_mlp(
    x: Tensor, mixed: Tensor, mlp: nn.Module, scale: Tensor | None, drop_path: nn.Module
) -> Tensor:
    """``x + drop_path(scale * mlp(mixed))``, the sum by a folded second convolution if it can.

    Args:
        x: (N, C, H, W).
        mixed: (N, C, H, W).
        mlp: A `ConvMlp`, or what stands in its place.
        scale: Factor per channel (C,).
        drop_path: Applied to the sum's second term.
    """
    if type(mlp) is not ConvMlp or not can_stand_for(mlp):
        return x + drop_path(_times(mlp(mixed), scale))
    if _adds(mlp.fc2, FoldedPointwiseConv2d) and scale is None and _keeps(drop_path):
        return mlp.fc2(mlp.act(mlp.fc1(mixed)), x)
    return x + drop_path(mlp._scaled(mixed, scale))


def add_conv_norm_mlp(
    x: Tensor,
    mixed: Tensor,
    mlp: nn.Module,
    norm: nn.Module = _IDENTITY,
    drop_path: nn.Module = _KEEP,
) -> Tensor:
    """``x + drop_path(mlp(norm(mixed)))``.

    On a CPU it is one autograd node in training (`mmlk.ops.conv_norm_mlp`), and two products that apply
    GELU and add the residual in a folded network.

    Args:
        x: (N, C, H, W).
        mixed: (N, C, H, W).
        mlp: A `ConvNormMlp`, or what stands in its place.
        norm: Any map of (N, C, H, W) to itself.
        drop_path: Applied to the sum's second term.
    """
    if type(mlp) is ConvNormMlp and len(mlp) == 3 and can_stand_for(mlp) and _keeps(drop_path):
        run, args = mlp._accelerated(x, mixed, norm)
        if run is not None:
            return run(*args)
        first, act, last = mlp
        if _adds(last, FoldedPointwiseConv2d):
            return last(act(first(norm(mixed))), x)
    return x + drop_path(mlp(norm(mixed)))


def add_channel_mixer(
    x: Tensor,
    mixed: Tensor,
    norm: nn.Module,
    mixer: nn.Module,
    scale: Tensor | None,
    drop_path: nn.Module,
) -> Tensor:
    """``x + drop_path(scale * mixer(norm(mixed)))``, by the fastest way that the mixer has.

    Args:
        x: (N, C, H, W).
        mixed: (N, C, H, W).
        norm: Any map of (N, C, H, W) to itself.
        mixer: Likewise; `ConvMlp` and `ConvNormMlp` have ways of their own.
        scale: Factor per channel (C,).
        drop_path: Applied to the sum's second term.
    """
    if scale is None and type(mixer) is ConvNormMlp:
        return add_conv_norm_mlp(x, mixed, mixer, norm, drop_path)
    return add_conv_mlp(x, norm(mixed), mixer, scale, drop_path)


class ConvMlp(NotScriptable, nn.Module):
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

    def forward(self, x: Tensor) -> Tensor:
        return self._scaled(x, None)

    def _scaled(self, x: Tensor, scale: Tensor | None) -> Tensor:
        first, second = self.fc1, self.fc2
        if _is_mlp(first, self.act, second, nn.Conv2d) and _is_plain_pair(first, second):
            weight1, weight2 = first.weight.flatten(1), second.weight.flatten(1)
            args = x.permute(0, 2, 3, 1), weight1, first.bias, weight2, second.bias, scale
            run = dispatch.accelerated('channel_mlp', *args)
            if run is not None:
                return run(*args).permute(0, 3, 1, 2)
        # Elsewhere convolutions spare a contiguous map two transpositions.
        return _times(second(self.act(first(x))), scale)

    def fold(self) -> None:
        """Prepare for inference, when the weights are final."""
        self.fc1, self.act = FoldedPointwiseConv2d(self.fc1, gelu=True), nn.Identity()
        self.fc2 = FoldedPointwiseConv2d(self.fc2)


class ConvNormMlp(NotScriptable, nn.Sequential):
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

    def _accelerated(self, x: Tensor, mixed: Tensor, norm: nn.Module):
        """The operator that stands for norm and mixer in training and its arguments, or None."""
        first, act, last = self
        if (
            not type(first) is type(last) is ConvNorm
            or not (first.norm.training and last.norm.training)  # soon told, for inference
            or type(act) is not GELU
            or not type(first.conv) is type(last.conv) is PointwiseConv2d
            or first.conv.bias is not None
            or last.conv.bias is not None
            or not _is_plain_pair(first.conv, last.conv)
        ):
            return None, ()
        norms = first.norm, last.norm
        if not can_stand_for(self, norm, act, first, last, first.conv, last.conv, *norms):
            return None, ()
        front = None if type(norm) is nn.Identity else own_batch(norm)
        states = own_batch(first.norm), own_batch(last.norm)
        if None in states or (front is None and type(norm) is not nn.Identity):
            return None, ()
        args = x, mixed, front, first.conv.weight, states[0], last.conv.weight, states[1]
        return dispatch.accelerated('conv_norm_mlp', *args), args

    def fold(self) -> None:
        """Prepare for inference, when the norms are folded and the weights are final."""
        if all(isinstance(each, nn.Conv2d) and each.groups == 1 for each in (self[0], self[2])):
            self[0], self[1] = FoldedPointwiseConv2d(self[0], gelu=True), nn.Identity()
            self[2] = FoldedPointwiseConv2d(self[2])
