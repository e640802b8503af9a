"""ConvNeXt-dcls as its authors compute it; see ``rivals.py``."""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mmlk.backbones import DCLSConvNeXt  # noqa: E402
from mmlk.layers import LayerNorm2d  # noqa: E402
from mmlk.networks.blocks import ConvNeXtBlock  # noqa: E402
from mmlk.ops import DCLSDepthwiseConv2d, PatchConv2d  # noqa: E402


def dcls_grid_kernel(weight: Tensor, positions: Tensor, size: int) -> Tensor:
    """``v0`` kernel (C, 1, size, size) by the published construction.

    Four planes of (size, size, C, 1, m) cells mark the corners around each element and are mixed by
    its fractions; the sum over elements comes last.
    """
    p = positions + size // 2
    corner = p.detach().floor()
    down, right = p - corner
    cells = torch.arange(size, device=positions.device)
    rows, columns = cells.view(-1, 1, 1, 1, 1), cells.view(1, -1, 1, 1, 1)
    here, east, south, both = (
        torch.where((rows == corner[0] + i) * (columns == corner[1] + j), 1.0, 0.0)
        for i in (0, 1)
        for j in (0, 1)
    )
    spread = (
        here
        + down * right * (here - east - south + both)
        + down * (south - here)
        + right * (east - here)
    )
    return (weight * spread).sum(4).permute(2, 3, 0, 1)


def dcls_package_kernel(folder: str) -> Callable[..., Tensor]:
    """Construction ``(weight, P, SIG, size, version)`` by the DCLS package installed in ``folder``."""
    sys.path.append(folder)
    logging.disable(logging.WARNING)
    from DCLS.construct.modules import ConstructKernel2d

    @functools.cache
    def builder(channels: int, count: int, size: int, version: str) -> nn.Module:
        return ConstructKernel2d(channels, channels, channels, count, (size, size), version)

    def construct(weight, positions, sigma, size, version):
        return builder(len(weight), weight.shape[2], size, version)(weight, positions, sigma)

    return construct


class _GridDCLS(DCLSDepthwiseConv2d):
    """A dense kernel constructed in every forward pass, then torch's own convolution."""

    construct: Callable[..., Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        size = self.kernel_size[0]
        if self.construct is None:
            kernel = dcls_grid_kernel(self.weight, self.P, size)
        else:
            kernel = self.construct(self.weight, self.P, self.SIG, size, self.version)
        return F.conv2d(x, kernel, self.bias, 1, size // 2, 1, x.shape[1])


class _ManualLayerNorm2d(LayerNorm2d):
    """Mean and variance over channels by elementwise operations, as ConvNeXt writes it."""

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(1, keepdim=True)
        variance = centred.square().mean(1, keepdim=True)
        normed = centred / torch.sqrt(variance + self.eps)
        return self.weight[:, None, None] * normed + self.bias[:, None, None]


class PlainBlock(ConvNeXtBlock):
    """ConvNeXt's block layer by layer."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.pwconv2(self.act(self.pwconv1(self.norm(self.mixer(x).permute(0, 2, 3, 1)))))
        if self.gamma is not None:
            y = self.gamma * y
        return x + self.drop_path(y.permute(0, 3, 1, 2))


class _ContiguousDCLSConvNeXt(DCLSConvNeXt):
    """Computes in the layout it is given."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        for module in self.stem_modules():
            x = module(x)
        outputs = []
        for stage in range(self.out_indices[-1] + 1):
            x = self.run_stage(stage, x)
            if stage in self.out_indices:
                outputs.append(getattr(self, f'norm{stage}')(x) if self._output_norm else x)
        return tuple(outputs)


def dcls_convnext(package: str | None = None, **options) -> nn.Module:
    """ConvNeXt-dcls (version ``v0``) in the authors' formulation.

    Args:
        package: Folder in which the DCLS package is installed, to construct kernels; None restates it.
        options: Of the backbone.
    """
    model = DCLSConvNeXt(**options)
    model.__class__ = _ContiguousDCLSConvNeXt
    construct = dcls_package_kernel(package) if package else None
    plain = {
        DCLSDepthwiseConv2d: _GridDCLS,
        ConvNeXtBlock: PlainBlock,
        PatchConv2d: nn.Conv2d,
        LayerNorm2d: _ManualLayerNorm2d,
    }
    for module in model.modules():
        module.__class__ = plain.get(type(module), type(module))
        if isinstance(module, _GridDCLS):
            module.construct = construct
    return model
