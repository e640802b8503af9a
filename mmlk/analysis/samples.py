"""Samples of a config's data set as its pipeline makes them, drawn with their labels."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, VISUALIZERS, init_default_scope
from PIL import Image, ImageDraw

from mmlk.data.opened import leaf_datasets
from mmlk.data.pipelines import step_name

MODES = ('transformed', 'original')
_VISUALIZERS = {
    'mmseg': dict(type='SegLocalVisualizer', alpha=0.5),  # the usual 0.8 hides the image
    'mmdet': dict(type='DetLocalVisualizer'),
    'mmpretrain': dict(type='UniversalVisualizer'),
}
"""What is used for each scope where the config does not say otherwise."""
_MARGIN, _CAPTION = 6, 14


class Drawn(NamedTuple):
    """One sample as a picture.

    Attributes:
        name: Stem of the image's file.
        picture: uint8 array (H, W, 3), RGB, with the labels on it.
    """

    name: str
    picture: np.ndarray


def build_dataset(cfg: Config, loader: str, mode: str) -> Any:
    """The data set of a loader.

    Args:
        cfg: Merged config.
        loader: Key of the data loader.
        mode: ``transformed`` for the whole pipeline with its wrappers; ``original`` for what is read
            from the files: the steps that load and pack, of each data set inside wrappers.

    Raises:
        ValueError: If the config has no such loader.
    """
    settings = (cfg.get(loader) or {}).get('dataset')
    if not settings:
        raise ValueError(f'the config has no {loader} with a data set')
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    if mode == 'original':
        leaves = [copy.deepcopy(leaf) for leaf in leaf_datasets(settings)]
        for leaf in leaves:
            leaf['pipeline'] = [step for step in leaf['pipeline'] if _reads(step)]
        settings = leaves[0] if len(leaves) == 1 else dict(type='ConcatDataset', datasets=leaves)
    return DATASETS.build(settings)


def _reads(step: Mapping) -> bool:
    """Whether a step loads, checks or packs, and so leaves pixels and labels as they are."""
    return step_name(step).startswith(('Load', 'CheckSample', 'Pack'))


def draw_samples(cfg: Config, loader: str, dataset: Any, count: int) -> Iterator[Drawn]:
    """The first samples of a data set, drawn by the visualizer of the config's toolbox.

    Where a pipeline changes the image before it loads the labels, as those for tests do, the labels fit
    the original image, and the picture has its size.

    Args:
        cfg: The config, for its toolbox and the order of colours.
        loader: Key of the data loader.
        dataset: What :func:`build_dataset` returned.
        count: Number of samples.

    Raises:
        ValueError: If the samples are no single images, as with test-time augmentation.
    """
    scope = cfg.get('default_scope')
    settings = {**_VISUALIZERS.get(scope, {}), **(cfg.get('visualizer') or {})}
    if 'type' not in settings:
        raise ValueError(f'the config names no visualizer, and default_scope={scope!r} has none')
    visualizer = VISUALIZERS.build(dict(settings, name='browse_dataset', vis_backends=None))
    visualizer.dataset_meta = getattr(dataset, 'metainfo', {})
    swap, late = _swaps_colours(cfg), _labels_come_late(cfg[loader].dataset)
    for index in range(min(count, len(dataset))):
        packed = dataset[index]
        inputs = packed.get('inputs') if isinstance(packed, Mapping) else None
        if not isinstance(inputs, torch.Tensor) or inputs.ndim != 3:
            raise ValueError(
                f'sample {index} holds no single image (C, H, W) under "inputs", but '
                f'{type(inputs).__name__}; its pipeline has to end in a Pack..Inputs step'
            )
        image, sample = as_picture(inputs, swap), packed['data_samples']
        if late:
            height, width = sample.metainfo['ori_shape'][:2]
            image = np.asarray(Image.fromarray(image).resize((width, height)))
        if hasattr(visualizer, 'visualize_cls'):
            drawn = visualizer.visualize_cls(image, sample, draw_pred=False, resize=224)
        else:
            visualizer.add_datasample('', image, _with_arrays(sample), draw_pred=False)
            drawn = visualizer.get_image()
        yield Drawn(_stem(sample, index), drawn)


def _labels_come_late(settings: Mapping) -> bool:
    """Whether a step changes the image before the labels are loaded."""
    for leaf in leaf_datasets(settings):
        names = [step_name(step) for step in leaf['pipeline']]
        labels = [i for i, name in enumerate(names) if name.startswith('LoadAnnotations')]
        if labels and not all(_reads(step) for step in leaf['pipeline'][: labels[0]]):
            return True
    return False


def _swaps_colours(cfg: Config) -> bool:
    """Whether the model's preprocessor turns BGR to RGB, and images come as BGR therefore."""
    inside = (cfg.get('model') or {}).get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    return bool(inside.get('bgr_to_rgb') or inside.get('to_rgb'))


def as_picture(image: torch.Tensor, swap: bool) -> np.ndarray:
    """An image (C, H, W) of any type and number of bands as uint8 (H, W, 3).

    Args:
        image: One band is shown as grey; of more than three the first three are shown. Values that are
            not uint8 are stretched so that the smallest becomes 0 and the largest 255.
        swap: Whether the bands are blue, green, red.
    """
    bands = image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)
    if swap and len(image) == 3:
        bands = bands.flip(0)
    if bands.dtype != torch.uint8:
        low, high = bands.min().double(), bands.max().double()
        bands = ((bands.double() - low) / (high - low).clamp(min=1e-12) * 255).round()
    return np.ascontiguousarray(bands.byte().permute(1, 2, 0).numpy())


def _with_arrays(sample: Any) -> Any:
    """The sample with boxes and masks as MMDetection's visualizer wants them."""
    objects = sample.get('gt_instances')
    if objects is not None:
        if hasattr(objects.get('bboxes'), 'tensor'):
            objects.bboxes = objects.bboxes.tensor
        if objects.get('masks') is not None:
            objects.masks = objects.masks.to_ndarray().astype(bool)
    return sample


def _stem(sample: Any, index: int) -> str:
    path = sample.metainfo.get('img_path')
    return Path(path).stem if path else f'{index:06d}'


def contact_sheet(drawn: list[Drawn], columns: int, cell: int) -> Image.Image:
    """Small copies of the pictures in rows, with their names.

    Args:
        drawn: The pictures, at least one.
        columns: Pictures in a row.
        cell: Longest side of a copy in pixels.
    """
    copies = [Image.fromarray(each.picture) for each in drawn]
    for each in copies:
        each.thumbnail((cell, cell))
    cell, columns = max(each.width for each in copies), min(columns, len(copies))
    rows = [copies[start : start + columns] for start in range(0, len(copies), columns)]
    heights = [max(each.height for each in row) + _CAPTION + _MARGIN for row in rows]
    sheet = Image.new(
        'RGB', (columns * (cell + _MARGIN) + _MARGIN, sum(heights) + _MARGIN), 'white'
    )
    draw, names = ImageDraw.Draw(sheet), iter(each.name for each in drawn)
    y = _MARGIN
    for row, height in zip(rows, heights):
        for column, each in enumerate(row):
            x = _MARGIN + column * (cell + _MARGIN)
            draw.text((x, y), next(names)[-cell // 6 :], fill='black')
            sheet.paste(each, (x, y + _CAPTION))
        y += height
    return sheet
