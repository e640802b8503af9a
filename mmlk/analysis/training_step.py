"""Memory of one training step of a segmentor or detector, counted without a device.

The step runs on torch's ``meta`` device, where shapes flow and nothing is computed, with every operator
as its plain composition. What lives at any moment is what would lie on a GPU: activations that the
backward pass needs, temporaries, gradients. Heads get the losses' shapes: logits resized to the labels
and cross entropy for segmentation, the regions that the sampler draws for two-stage detectors. Not
counted: workspaces of cuDNN, the matching of anchors with boxes, and what the allocator cannot reuse.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from mmlk.cli.complexity import reference_operators
from mmlk.cli.config import drop_pretrained

_BLOCK = 512
"""Bytes that CUDA's allocator rounds every tensor up to."""
_KEPT = 16
"""Bytes per weight beside its gradient: the weight, AdamW's two moments, DDP's bucket."""


class StepMemory(NamedTuple):
    """What a GPU needs for its share of a batch.

    Attributes:
        kept: Bytes of weights, moments and buckets, which stay from step to step.
        live: Most bytes that live at once beside them: activations, temporaries, gradients.
    """

    kept: int
    live: int


class LiveBytes(TorchDispatchMode):
    """Follows the bytes of the tensors that operators make inside the context, until they are freed.

    Args:
        known: Tensors that are not counted, such as weights.

    Attributes:
        now: Bytes that live.
        peak: Most bytes that lived at once.
    """

    def __init__(self, known: Iterator[Tensor]) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen = WeakIdKeyDictionary()
        for tensor in known:
            self._seen[tensor.untyped_storage()] = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor):
                self._hold(tensor.untyped_storage())
        return output

    def _hold(self, storage: torch.UntypedStorage) -> None:
        if storage in self._seen:
            return
        size = -(-storage.nbytes() // _BLOCK) * _BLOCK
        self._seen[storage] = True
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.now -= size


class HalfPrecision(TorchFunctionMode):
    """Casts on ``meta`` what autocast casts on CUDA, where the device's own rules do not apply."""

    HALF = frozenset(
        {'conv2d', 'linear', 'matmul', '__matmul__', 'bmm', 'einsum', 'conv_transpose2d'}
    )
    FULL = frozenset({'layer_norm', 'cross_entropy', 'softmax', 'log_softmax', 'sum', 'norm'})

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, '__name__', '')
        dtype = torch.half if name in self.HALF else torch.float if name in self.FULL else None
        if dtype is not None:
            args = [_cast(value, dtype) for value in args]
            kwargs = {key: _cast(value, dtype) for key, value in (kwargs or {}).items()}
        return func(*args, **(kwargs or {}))


def _cast(value: Any, dtype: torch.dtype) -> Any:
    convert = isinstance(value, Tensor) and value.is_floating_point() and value.dtype != dtype
    return value.to(dtype) if convert else value


def measure_step(cfg: Config, images: int, shape: tuple[int, int]) -> StepMemory:
    """Count a training step of the config's model on one GPU.

    Args:
        cfg: Config of a segmentor or a two-stage detector.
        images: Images per GPU.
        shape: Height and width that they are padded to, in pixels.
    """
    init_default_scope(cfg.default_scope)
    with torch.device('meta'):
        model = revert_sync_batchnorm(MODELS.build(drop_pretrained(cfg.model))).train()
    half = cfg.optim_wrapper.type == 'AmpOptimWrapper'
    weights = sum(p.numel() for p in model.parameters() if p.requires_grad)
    image = torch.empty(images, model.backbone.in_channels, *shape, device='meta')
    live = LiveBytes(iter([*model.parameters(), *model.buffers(), image]))
    with reference_operators(), live, HalfPrecision() if half else nullcontext():
        torch.stack([value.float() for value in _losses(model, image)]).sum().backward()
    return StepMemory(_KEPT * weights, live.peak)


def _losses(model: nn.Module, image: Tensor) -> Iterator[Tensor]:
    """A number per output, whose gradient has the shape and the type of a loss's."""
    maps = model.backbone(image)
    if getattr(model, 'with_neck', False):
        maps = model.neck(maps)
    if hasattr(model, 'decode_head'):
        labels = torch.empty(len(image), *image.shape[2:], dtype=torch.long, device='meta')
        for head in (model.decode_head, getattr(model, 'auxiliary_head', None)):
            if head is not None:
                yield _segmentation_loss(head, maps, labels)
        return
    yield from (output.mean() for outputs in model.rpn_head(maps) for output in outputs)
    yield from (level.mean() for level in maps)  # RoIAlign hands gradients back to every level
    yield from _region_losses(model, len(image))


def _segmentation_loss(head: nn.Module, maps: Any, labels: Tensor) -> Tensor:
    size = labels.shape[1:]
    logits = F.interpolate(head(maps), size, mode='bilinear', align_corners=head.align_corners)
    return F.cross_entropy(logits, labels, ignore_index=head.ignore_index, reduction='none').mean()


def _region_losses(model: nn.Module, images: int) -> Iterator[Tensor]:
    """Losses of the box and mask heads on as many regions as the sampler draws for them."""
    regions = model.roi_head
    samplers = model.train_cfg.rcnn
    samplers = [each.sampler for each in (samplers if isinstance(samplers, list) else [samplers])]
    for name, extractor in (
        ('bbox_head', 'bbox_roi_extractor'),
        ('mask_head', 'mask_roi_extractor'),
    ):
        heads, extractors = (_as_list(getattr(regions, each)) for each in (name, extractor))
        for head, source, sampler in zip(heads, extractors, samplers, strict=True):
            count = images * sampler.num
            if name == 'mask_head':
                count = int(count * sampler.pos_fraction)
            size = source.roi_layers[0].output_size
            region = torch.empty(count, source.out_channels, *size, device='meta')
            outputs = head(region.requires_grad_())
            yield from (
                each.mean() for each in (outputs if isinstance(outputs, tuple) else [outputs])
            )


def _as_list(modules: nn.Module) -> list[nn.Module]:
    return list(modules) if isinstance(modules, nn.ModuleList) else [modules]
