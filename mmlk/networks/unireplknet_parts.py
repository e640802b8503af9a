"""Block, stem and downsampling of UniRepLKNet, under its authors' names."""

from __future__ import annotations

from torch import Tensor, nn

from mmlk.layers import (
    GELU,
    DropPath,
    GRNMlp,
    build_norm,
    fold_grn_mlp,
    fold_norm_after,
    fold_scale_after,
    has_affine_form,
)
from mmlk.networks.blocks import Block


class UniRepLKNetBlock(Block):
    """``x + drop_path(gamma * mlp(norm(token_mixer(x))))``, the layers of the MLP beside the others.

    Args:
        channels: Channels C.
        token_mixer: Maps (N, C, H, W) to the same shape; ``dwconv`` in the state dict.
        norm: Likewise.
        mlp: Its layers ``se``, ``pwconv1``, ``act`` and ``pwconv2`` become the block's own.
        drop_path: Probability of dropping a sample's residual.
        layer_scale_init: Initial ``gamma``; None or 0 leaves it out.
    """

    def __init__(
        self,
        channels: int,
        token_mixer: nn.Module,
        norm: nn.Module,
        mlp: GRNMlp,
        *,
        drop_path: float = 0.0,
        layer_scale_init: float | None = None,
    ):
        super().__init__(
            channels, token_mixer, norm, mixer='dwconv', layer_scale_init=layer_scale_init
        )
        self.se, self.pwconv1, self.act, self.pwconv2 = mlp
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = self.se(self.norm(self._mixed(x)))
        y = self.pwconv2(self.act(self.pwconv1(y)))
        if self.gamma is not None:
            y = y * self.gamma.view(-1, 1, 1)
        return x + self.drop_path(y)

    def fold(self) -> None:
        """Fold the kernels, the norms, the shift of the response norm and ``gamma``."""
        self._fold_mixer()
        self._fold_norm_into_mixer()
        fold_grn_mlp(self.pwconv1, self.act, self.pwconv2)
        if self.gamma is not None and isinstance(self.pwconv2[2], nn.Identity):
            self.pwconv2[0] = fold_scale_after(self.pwconv2[0], self.gamma)
            self.gamma = None


class _NormedConvolutions(nn.Sequential):
    """3x3 convolutions of stride 2, each with a norm behind it."""

    def fold(self) -> None:
        """Fold norms into the convolutions before them, where constants do what they do."""
        layers = list(self)
        for i, (layer, norm) in enumerate(zip(layers, layers[1:])):
            if isinstance(layer, nn.Conv2d) and has_affine_form(norm):
                self[i], self[i + 1] = fold_norm_after(layer, norm), nn.Identity()


class UniRepLKNetStem(_NormedConvolutions):
    """3x3 convolution of stride 2, norm, GELU, 3x3 convolution of stride 2, norm.

    Args:
        in_channels: Channels of the image.
        channels: Channels C of the first stage; half as many after the first convolution.
        norm_cfg: Norm; the network's where an entry names none.
    """

    def __init__(self, in_channels: int, channels: int, *, norm_cfg: dict):
        half = channels // 2
        super().__init__(
            nn.Conv2d(in_channels, half, 3, 2, 1),
            build_norm(norm_cfg, half),
            GELU(),
            nn.Conv2d(half, channels, 3, 2, 1),
            build_norm(norm_cfg, channels),
        )


class UniRepLKNetDownsample(_NormedConvolutions):
    """3x3 convolution of stride 2, and norm.

    Args:
        in_channels: Channels C of the input.
        channels: Channels of the output.
        norm_cfg: Norm.
    """

    def __init__(self, in_channels: int, channels: int, *, norm_cfg: dict):
        super().__init__(nn.Conv2d(in_channels, channels, 3, 2, 1), build_norm(norm_cfg, channels))
