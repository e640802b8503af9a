"""The block that all families have in common, and stem and downsampling of InceptionNeXt and ConvNeXt.

It is the MetaNeXt block of InceptionNeXt's paper (Sec. 3.1); families differ in what they put into it
and in its names.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmlk.layers import (
    ConvMlp,
    ConvNormMlp,
    DropPath,
    FoldedLinear,
    LayerNorm,
    LayerNorm2d,
    add_channel_mixer,
    add_normed_mlp,
    build_norm,
    fold_conv_norms,
    fold_norm_after,
    fold_norm_before,
    fold_patches,
    fold_scale_after,
    has_affine_form,
    norm_affine,
)
from mmlk.networks.base import folded
from mmlk.ops import DepthwiseConv2d, PatchConv2d

_ENDS: dict[type, tuple[str, str]] = {ConvMlp: ('fc1', 'fc2'), ConvNormMlp: ('0', '2')}
"""First and last convolution of our channel mixers, which absorb what stands around them."""

_IDENTITY = nn.Identity()


class Block(nn.Module):
    """Layer scale, token mixer under the name ``mixer``, norm and stochastic depth."""

    def __init__(
        self,
        channels: int,
        token_mixer: nn.Module,
        norm: nn.Module,
        *,
        mixer: str,
        layer_scale_init: float | None,
    ):
        super().__init__()
        self.gamma = (
            nn.Parameter(torch.full((channels,), float(layer_scale_init)))
            if layer_scale_init
            else None
        )
        self.mixer_name = mixer
        self.add_module(mixer, token_mixer)
        self.norm = norm

    @property
    def mixer(self) -> nn.Module:
        """The token mixer, whatever it is called."""
        return getattr(self, self.mixer_name)

    def _mixed(self, x: Tensor) -> Tensor:
        mixer = getattr(self, self.mixer_name)
        mixed = mixer(x)
        if torch.compiler.is_compiling() or torch.jit.is_tracing() or mixed.shape == x.shape:
            return mixed
        raise ValueError(
            f'{type(mixer).__name__} turns {tuple(x.shape)} into {tuple(mixed.shape)}; a token mixer '
            'keeps the shape: set its stride to 1, its padding to half its kernel, and its output '
            'channels to its input channels'
        )

    def _fold_mixer(self) -> None:
        setattr(self, self.mixer_name, folded(getattr(self, self.mixer_name)))

    def _fold_norm_into_mixer(self) -> None:
        """Fold the norm behind a token mixer that is one convolution, if constants do what it does."""
        if type(self.mixer) in (nn.Conv2d, DepthwiseConv2d) and has_affine_form(self.norm):
            setattr(self, self.mixer_name, fold_norm_after(self.mixer, self.norm))
            self.norm = nn.Identity()


class MetaNeXtBlock(Block):
    """``x + drop_path(gamma * channel_mixer(norm(token_mixer(x))))`` on (N, C, H, W) maps.

    Args:
        channels: Channels C.
        token_mixer: Maps (N, C, H, W) to the same shape.
        norm: Likewise.
        channel_mixer: Likewise.
        names: Under which the state dict holds token mixer and channel mixer.
        drop_path: Probability of dropping a sample's residual.
        layer_scale_init: Initial ``gamma``; None or 0 leaves the scale out.
    """

    def __init__(
        self,
        channels: int,
        token_mixer: nn.Module,
        norm: nn.Module,
        channel_mixer: nn.Module,
        *,
        names: tuple[str, str] = ('token_mixer', 'mlp'),
        drop_path: float = 0.0,
        layer_scale_init: float | None = None,
    ):
        super().__init__(
            channels, token_mixer, norm, mixer=names[0], layer_scale_init=layer_scale_init
        )
        self._channel_mixer = names[1]
        self.add_module(names[1], channel_mixer)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        mixer = getattr(self, self._channel_mixer)
        return add_channel_mixer(x, self._mixed(x), self.norm, mixer, self.gamma, self.drop_path)

    def fold(self) -> None:
        """Fold both mixers; the norm goes into the first 1x1 convolution, ``gamma`` into the last."""
        self._fold_mixer()
        mixer = getattr(self, self._channel_mixer)
        ends = _ENDS.get(type(mixer))
        if ends is None:
            self._fold_norm_into_mixer()
            setattr(self, self._channel_mixer, folded(mixer))
            return
        fold_conv_norms(mixer)
        first, last = (getattr(mixer, name) for name in ends)
        if isinstance(first, nn.Conv2d) and has_affine_form(self.norm):
            setattr(mixer, ends[0], fold_norm_before(self.norm, first))
            self.norm = nn.Identity()
        if isinstance(last, nn.Conv2d) and self.gamma is not None:
            setattr(mixer, ends[1], fold_scale_after(last, self.gamma))
            self.gamma = None
        mixer.fold()


class ConvNeXtBlock(Block):
    """`MetaNeXtBlock` whose MLP is two linear layers on the last axis, ``pwconv1`` and ``pwconv2``.

    So it stands in the files of ConvNeXt (Liu et al., CVPR 2022), SLaK and DCLS-ConvNeXt.

    Args:
        channels: Channels C.
        token_mixer: Maps (N, C, H, W) to the same shape.
        norm: Likewise; a `LayerNorm2d` becomes a layer norm on the last axis.
        mlp: Its convolutions become the linear layers.
        mixer: Name of the token mixer in the state dict.
        drop_path: Probability of dropping a sample's residual.
        layer_scale_init: Initial ``gamma``; None or 0 leaves the scale out.
    """

    def __init__(
        self,
        channels: int,
        token_mixer: nn.Module,
        norm: nn.Module,
        mlp: ConvMlp,
        *,
        mixer: str = 'dwconv',
        drop_path: float = 0.0,
        layer_scale_init: float | None = None,
    ):
        super().__init__(
            channels,
            token_mixer,
            _on_last_axis(norm),
            mixer=mixer,
            layer_scale_init=layer_scale_init,
        )
        self.pwconv1, self.act, self.pwconv2 = _linear(mlp.fc1), nn.GELU(), _linear(mlp.fc2)
        self.drop_path = DropPath(drop_path)
        self.norms_last_axis = isinstance(norm, nn.LayerNorm)

    def forward(self, x: Tensor) -> Tensor:
        mixed, norm = self._mixed(x), self.norm
        if not self.norms_last_axis:
            mixed, norm = norm(mixed), _IDENTITY
        layers = self.pwconv1, self.act, self.pwconv2
        return add_normed_mlp(x, mixed, norm, *layers, self.gamma, self.drop_path)

    def fold(self) -> None:
        """Fold the token mixer, the norm's constants into ``pwconv1``, ``gamma`` into ``pwconv2``."""
        self._fold_mixer()
        norm = self.norm
        if has_affine_form(norm):
            self._absorb(*norm_affine(norm))
            self.norm = nn.Identity()
        elif isinstance(norm, nn.LayerNorm) and norm.elementwise_affine:
            shift = torch.zeros_like(norm.weight) if norm.bias is None else norm.bias
            self._absorb(norm.weight.double(), shift.double())
            self.norm = LayerNorm(norm.normalized_shape[0], norm.eps, elementwise_affine=False)
        if self.gamma is not None:
            self.pwconv2 = fold_scale_after(self.pwconv2, self.gamma)
            self.gamma = None
        self.pwconv1, self.act = FoldedLinear(self.pwconv1, gelu=True), nn.Identity()
        self.pwconv2 = FoldedLinear(self.pwconv2)

    def _absorb(self, scale: Tensor, shift: Tensor) -> None:
        first = self.pwconv1
        weight, dtype = first.weight.double(), first.weight.dtype
        first.bias = nn.Parameter((first.bias.double() + weight @ shift).to(dtype))
        first.weight = nn.Parameter((weight * scale).to(dtype))


def _on_last_axis(norm: nn.Module) -> nn.Module:
    if not isinstance(norm, LayerNorm2d):
        return norm
    plain = LayerNorm(norm.normalized_shape[0], norm.eps)
    return plain.requires_grad_(norm.weight.requires_grad)


def _linear(convolution: nn.Conv2d) -> nn.Linear:
    layer = nn.Linear(convolution.in_channels, convolution.out_channels, device='meta')
    layer.weight = nn.Parameter(convolution.weight.detach().flatten(1))
    layer.bias = convolution.bias
    return layer


class PatchStem(nn.Sequential):
    """4x4 convolution of stride 4, and norm.

    Args:
        in_channels: Channels of the image.
        channels: Channels C of the first stage.
        norm_cfg: Norm; the network's where an entry names none.
    """

    def __init__(self, in_channels: int, channels: int, *, norm_cfg: dict):
        super().__init__(nn.Conv2d(in_channels, channels, 4, 4), build_norm(norm_cfg, channels))

    def fold(self) -> nn.Module:
        """The convolution that equals this in eval mode, if constants do."""
        if has_affine_form(self[1]):
            return fold_patches(fold_norm_after(*self))
        self[0] = fold_patches(self[0])
        return self


class PatchDownsample(nn.Sequential):
    """Norm and 2x2 convolution with stride 2.

    Args:
        in_channels: Channels C of the input.
        channels: Channels of the output.
        norm_cfg: Norm.
    """

    def __init__(self, in_channels: int, channels: int, *, norm_cfg: dict):
        super().__init__(
            build_norm(norm_cfg, in_channels), PatchConv2d(in_channels, channels, 2, 2)
        )

    def fold(self) -> nn.Module:
        """The convolution that equals this in eval mode, if constants do: it does not pad."""
        if has_affine_form(self[0]):
            return fold_patches(fold_norm_before(*self))
        self[1] = fold_patches(self[1])
        return self
