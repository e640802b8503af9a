"""Parameters and multiply-adds of a config's model, part by part.

The convention of the papers: one multiply-add per tap of a convolution and per product of a linear
layer, nothing for norms, activations and interpolation, and no auxiliary head, which a trained
model does not run. The model is traced on torch's ``meta`` device, where shapes flow and nothing is
computed, with every operator as its plain composition, so that the count does not depend on a
backend.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmlk.cli.config import drop_pretrained

# Regions per image that a two-stage detector's heads are charged for: all proposals by the box
# head, as many as detections are kept by the mask head.
_BOXES, _MASKS = 1000, 100


class Part(NamedTuple):
    """One row of the table: parameters, and multiply-adds or None where the part does not run."""

    name: str
    parameters: int
    macs: int | None


def build_model(cfg: Config, deploy: bool = False) -> nn.Module:
    """The config's model with random weights, in eval mode.

    Args:
        cfg: Config of a classifier, segmentor or detector.
        deploy: Fold what can be folded.
    """
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    model = MODELS.build(drop_pretrained(cfg.model)).eval()
    if deploy:
        model.backbone.switch_to_deploy()
    return model


def measure(model: nn.Module, shape: tuple[int, int]) -> list[Part]:
    """Parameters and multiply-adds of each part for one image.

    Args:
        model: Classifier, segmentor or two-stage detector; it is moved to the ``meta`` device.
        shape: Height and width of the image in pixels.
    """
    model = model.to('meta')
    image = torch.empty(1, _image_channels(model.backbone), *shape, device='meta')
    parts = []

    def run(name: str, module: nn.Module, call: Callable[[], object]) -> object:
        with FlopCounterMode(display=False) as counter:
            output = call()
        parts.append(Part(name, count_parameters(module), counter.get_total_flops() // 2))
        return output

    with torch.no_grad(), reference_operators():
        maps = run('backbone', model.backbone, lambda: model.backbone(image))
        if getattr(model, 'with_neck', False):
            neck_input = maps
            maps = run('neck', model.neck, lambda: model.neck(neck_input))
        for name, module, call in _heads(model, maps):
            run(name, module, call)
    if getattr(model, 'auxiliary_head', None) is not None:
        parts.append(Part('auxiliary_head', count_parameters(model.auxiliary_head), None))
    return parts


def count_parameters(module: nn.Module) -> int:
    """Number of weights; buffers do not count."""
    return sum(parameter.numel() for parameter in module.parameters())


def table(parts: Iterable[Part]) -> str:
    """The parts and their sum as aligned text."""
    rows = [*parts]
    total = Part(
        'total', sum(part.parameters for part in rows), sum(part.macs or 0 for part in rows)
    )
    lines = [f'{"part":16}{"parameters":>14}{"multiply-adds":>22}']
    for name, parameters, macs in [*rows, total]:
        amount = 'not run' if macs is None else f'{macs / 1e9:,.3f} G'
        lines.append(f'{name:16}{parameters:14,}{amount:>22}')
    return '\n'.join(lines)


def _image_channels(backbone: nn.Module) -> int:
    """Channels of the images, which backbones of other packages do not all state."""
    stem = next(each for each in backbone.modules() if isinstance(each, nn.Conv2d))
    return getattr(backbone, 'in_channels', stem.in_channels)


def _heads(model: nn.Module, maps: tuple) -> Iterator[tuple[str, nn.Module, Callable]]:
    """(name, module, call) of every head that runs after backbone and neck."""
    if hasattr(model, 'head'):
        yield 'head', model.head, lambda: model.head(maps)
        return
    if hasattr(model, 'decode_head'):
        heads = model.decode_head
        if not isinstance(heads, nn.ModuleList):
            yield 'decode_head', heads, lambda: heads(maps)
            return
        raise ValueError('measure: cascaded decode heads are not supported')
    yield 'rpn_head', model.rpn_head, lambda: model.rpn_head(maps)
    regions = model.roi_head
    for name, count, extractor in (
        ('bbox_head', _BOXES, 'bbox_roi_extractor'),
        ('mask_head', _MASKS, 'mask_roi_extractor'),
    ):
        stages = _as_list(getattr(regions, name, None))
        for index, head in enumerate(stages):
            features = _as_list(getattr(regions, extractor, None) or regions.bbox_roi_extractor)[0]
            size = features.roi_layers[0].output_size
            region = torch.empty(count, features.out_channels, *size, device='meta')
            label = name if len(stages) == 1 else f'{name}.{index}'
            yield label, head, lambda head=head, region=region: head(region)


def _as_list(modules: nn.Module | None) -> list[nn.Module]:
    if modules is None:
        return []
    return list(modules) if isinstance(modules, nn.ModuleList) else [modules]


@contextmanager
def reference_operators() -> Iterator[None]:
    """Compute every operator of this package by its reference composition."""
    before = os.environ.get('MMLK_BACKEND')
    os.environ['MMLK_BACKEND'] = 'reference'
    try:
        yield
    finally:
        del os.environ['MMLK_BACKEND']
        if before is not None:
            os.environ['MMLK_BACKEND'] = before
