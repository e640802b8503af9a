"""Heads of MMSegmentation in fewer operations: maps are convolved at their own size, then resized.

Importing this file needs MMSegmentation, so `heads` imports it once it has met one of its modules.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmseg.models.decode_heads import FPNHead, PSPHead, UPerHead
from mmseg.models.utils import Upsample, resize
from torch import Tensor, nn

from mmlk.compat import selected_maps
from mmlk.ops.modules import is_changed
from mmlk.surgery.layers import PLAIN
from mmlk.surgery.resized import add_convolved, gains
from mmlk.surgery.swapped import Swapped


class AcceleratedUPerHead(Swapped, UPerHead):
    """`UPerHead` whose pooled maps and pyramid are never enlarged and joined."""

    def _forward_feature(self, inputs: Sequence[Tensor]) -> Tensor:
        if not _serves(self, inputs):
            return super()._forward_feature(inputs)
        *fine, coarse = selected_maps(self, inputs)
        merged = _convolve_joined(self.bottleneck, _pooled(self, coarse), self.align_corners)
        outputs = [merged]
        for i in reversed(range(len(fine))):
            lateral = self.lateral_convs[i](fine[i])
            merged = lateral + resize(
                merged, lateral.shape[2:], None, 'bilinear', self.align_corners
            )
            outputs.insert(0, self.fpn_convs[i](merged))
        return _convolve_joined(self.fpn_bottleneck, outputs, self.align_corners)


class AcceleratedPSPHead(Swapped, PSPHead):
    """`PSPHead` whose pooled maps are never enlarged and joined."""

    def _forward_feature(self, inputs: Sequence[Tensor]) -> Tensor:
        if not _serves(self, inputs):
            return super()._forward_feature(inputs)
        x = selected_maps(self, inputs)
        return _convolve_joined(self.bottleneck, _pooled(self, x), self.align_corners)


class AcceleratedFPNHead(Swapped, FPNHead):
    """`FPNHead` whose convolutions behind an enlargement take the smaller map."""

    def forward(self, inputs: Sequence[Tensor]) -> Tensor:
        if not _serves(self, inputs):
            return super().forward(inputs)
        maps = selected_maps(self, inputs)
        total = self.scale_heads[0](maps[0])
        for layers, x in zip(self.scale_heads[1:], maps[1:]):
            y = self._scaled(layers, x)
            if y.shape[2:] != total.shape[2:]:
                y = resize(y, total.shape[2:], None, 'bilinear', self.align_corners)
            total += y
        return self.cls_seg(total)

    def _scaled(self, layers: nn.Sequential, x: Tensor) -> Tensor:
        """Convolutions, each of which follows an enlargement but the first, and a last enlargement."""
        size = None
        for layer in layers:
            if isinstance(layer, Upsample):
                size = tuple(int(side * layer.scale_factor) for side in x.shape[2:])
            elif size is None:
                x = layer(x)
            else:
                x, size = _convolve_joined(layer, [x], self.align_corners, size), None
        return x if size is None else resize(x, size, None, 'bilinear', self.align_corners)


def _serves(head: nn.Module, maps: Sequence[Tensor]) -> bool:
    """Whether a head may compute in other steps than its class says."""
    if torch.is_grad_enabled() or head.training:
        return False
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False  # graphs hold plain convolutions, of any size
    return all(x.device.type == 'cpu' for x in maps)


PARTS = {
    each.__bases__[1]: each
    for each in (AcceleratedUPerHead, AcceleratedPSPHead, AcceleratedFPNHead)
}
"""Class of MMSegmentation -> what it becomes."""


def refusal(head: nn.Module) -> str | None:
    """Reason why an accelerated class cannot stand for the class of a head, or None."""
    changed = [name for name, each in head.named_modules() if is_changed(each)]
    if changed:
        return f'hooks watch {changed[0] or "it"}, or its forward has been replaced'
    for name, each in head.named_modules():
        if isinstance(each, ConvModule) and each.conv.kernel_size == (3, 3):
            if not _is_plain(each):
                return f'{name} is more than a convolution, a norm and an activation'
    return None


def _is_plain(module: ConvModule) -> bool:
    """Whether it is a "same" convolution with zeros around the map, then a norm and an activation."""
    conv = module.conv
    return (
        f'{type(conv).__module__}.{type(conv).__qualname__}' in PLAIN
        and module.order == ('conv', 'norm', 'act')
        and not module.with_explicit_padding
        and conv.padding_mode == 'zeros'
        and (conv.stride, conv.padding, conv.dilation, conv.groups) == ((1, 1), (1, 1), (1, 1), 1)
    )


def _pooled(head: UPerHead | PSPHead, x: Tensor) -> list[Tensor]:
    """The map and its pooled forms, each at its own size."""
    return [x, *(branch(x) for branch in head.psp_modules)]


def _convolve_joined(
    module: ConvModule,
    maps: Sequence[Tensor],
    align_corners: bool | None,
    size: tuple[int, int] | None = None,
) -> Tensor:
    """``module`` of all maps resized to ``size``, that of the first one if None, and joined."""
    size = tuple(maps[0].shape[2:]) if size is None else size
    conv = module.conv
    weights = conv.weight.split([x.shape[1] for x in maps], dim=1)
    small = [gains(x, size) for x in maps]
    whole = [
        x if tuple(x.shape[2:]) == size else resize(x, size, None, 'bilinear', align_corners)
        for x, later in zip(maps, small)
        if not later
    ]
    if whole:
        kernel = torch.cat([w for w, later in zip(weights, small) if not later], dim=1)
        total = F.conv2d(torch.cat(whole, dim=1), kernel, conv.bias, padding=1).contiguous()
    else:
        total = maps[0].new_zeros(len(maps[0]), conv.out_channels, *size)
        total = total if conv.bias is None else total + conv.bias[:, None, None]
    for x, weight, later in zip(maps, weights, small):
        if later:
            add_convolved(total, x, weight, 'bilinear', align_corners)
    total = module.norm(total) if module.with_norm else total
    return module.activate(total) if module.with_activation else total
