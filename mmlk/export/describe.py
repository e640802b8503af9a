"""What an exported file says about itself: enough to use it without the config it came from."""

from __future__ import annotations

import contextlib
from typing import Any

from mmengine.config import Config

import mmlk
from mmlk.export.graph import Graph

# Steps of a test pipeline that change the size of the picture, with the settings that matter.
SIZE_STEPS = {
    'Resize': ('scale', 'scale_factor', 'keep_ratio'),
    'ResizeToMultiple': ('size_divisor',),
    'ResizeEdge': ('scale', 'edge', 'backend', 'interpolation'),
    'CenterCrop': ('crop_size',),
}
# Of these, no other setting can be expressed.
_STRICT = ('ResizeEdge', 'CenterCrop')
_CHANNELS = {1: 'GRAY', 3: 'RGB'}
_TASKS = dict(
    segmentor='segmentation',
    detector='detection',
    classifier='classification',
    backbone='features',
)
# Steps that leave the picture as it is.
_OTHER_STEPS = (
    'LoadImageFromFile',
    'LoadAnnotations',
    'CheckSample',
    'PackSegInputs',
    'PackDetInputs',
    'PackInputs',
)


def describe(
    graph: Graph, cfg: Config, classes: dict[str, Any], shape: tuple[int, int] | None
) -> dict[str, Any]:
    """Description of an exported graph, as plain values.

    Args:
        graph: What is exported.
        cfg: Config of the model.
        classes: Class names and palette.
        shape: Height and width if the graph is fixed to one picture of that size.

    Returns:
        The description. ``input.shape`` has a None for each side that is open, and is None as a whole
        where the number of pictures is open too.

    Raises:
        ValueError: If the test pipeline prepares pictures in a way that cannot be described.
    """
    settings = cfg.model.get('data_preprocessor') or {}
    channels = graph.backbone.in_channels
    whole = graph.part == 'classifier'
    return dict(
        version=1,
        producer=f'mmlk {mmlk.__version__}',
        part=graph.part,
        task=_TASKS[graph.part],
        classes=list(classes['classes']),
        palette=[] if whole else [[int(part) for part in rgb] for rgb in classes['palette']],
        input=dict(
            name='image',
            layout='NCHW',
            channels=_CHANNELS.get(channels, f'{channels} bands'),
            values='0 to 255' if graph.normalize else 'normalised by mean and std',
            mean=_in_rgb(graph, settings.get('mean')),
            std=_in_rgb(graph, settings.get('std')),
            shape=[1, channels, *(shape or (None, None))] if shape or not graph.any_batch else None,
        ),
        outputs=graph.output_names,
        mask_threshold=getattr(graph, 'mask_threshold', None),
        align_corners=bool(getattr(getattr(graph, 'decode_head', None), 'align_corners', False)),
        resize=size_steps(cfg) if shape is None else _steps_to(cfg, shape),
    )


def channel_count(description: dict[str, Any]) -> int:
    """Channels of the pictures that an exported file takes."""
    name = description['input']['channels']
    named = {value: key for key, value in _CHANNELS.items()}
    return named[name] if name in named else int(name.split()[0])


def size_steps(cfg: Config) -> list[dict[str, Any]]:
    """The steps of the test pipeline that change a picture's size, in order.

    Raises:
        ValueError: If the pipeline holds a step that this package cannot describe.
    """
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    steps = []
    for step in dataset.pipeline:
        kind = step['type'].rpartition('.')[2]
        odd = {*step} - {'type', *SIZE_STEPS.get(kind, ())} if kind in _STRICT else ()
        if kind in SIZE_STEPS and not odd:
            known = {key: step[key] for key in SIZE_STEPS[kind] if step.get(key) is not None}
            steps.append(dict(type=kind, **known))
        elif kind not in _OTHER_STEPS:
            raise ValueError(
                f'export: the test pipeline has a step {step["type"]}, which the description of '
                f'an exported file cannot express; use --shape, or take it out of the pipeline'
            )
    return steps


def _steps_to(cfg: Config, shape: tuple[int, int]) -> list[dict[str, Any]]:
    """The steps of a pipeline that ends with a crop to ``shape``, else a plain resize to it."""
    steps: list[dict[str, Any]] = []
    with contextlib.suppress(ValueError):  # a pipeline that cannot be described is not needed here
        steps = size_steps(cfg)
    size = steps[-1].get('crop_size') if steps else None
    if size == shape[0] == shape[1] or (
        isinstance(size, (list, tuple)) and [*size] == [*shape][::-1]
    ):
        return steps
    return [dict(type='Resize', scale=list(shape)[::-1], keep_ratio=False)]


def _in_rgb(graph: Graph, values: list[float] | None) -> list[float] | None:
    """``mean`` or ``std`` in the order in which the graph takes the channels."""
    if values is None:
        return None
    return [float(value) for value in (values[::-1] if graph.flip else values)]
