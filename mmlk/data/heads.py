"""Do the heads of a model fit the classes and labels of its data sets? Asked before it is built."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from mmlk.data.errors import DataError
from mmlk.data.labels import LabelRule
from mmlk.data.opened import Opened, named
from mmlk.data.pipelines import step_name, steps

if TYPE_CHECKING:
    from mmengine.dataset import BaseDataset

_SEGMENTATION = ('decode_head', 'auxiliary_head')
_DETECTION = ('roi_head.bbox_head', 'roi_head.mask_head', 'bbox_head', 'mask_head')
_IGNORED_BY_LOADER = 255


class Head(NamedTuple):
    """A head that states its number of classes.

    Attributes:
        place: Dotted key under ``model``.
        num_classes: What it states.
        ignore_index: Label that its loss leaves out; MMSegmentation's default is 255.
        weights: Number of class weights of its loss; None without such.
    """

    place: str
    num_classes: int
    ignore_index: int | None
    weights: int | None = None


def check_heads(cfg: Mapping, datasets: Sequence[Opened]) -> list[str]:
    """Compare classes, ``reduce_zero_label``, ``ignore_index`` and the heads' ``num_classes``.

    Steps ``mmlk.CheckSample`` that do not say which labels are allowed learn it here: the config is
    completed in place.

    Args:
        cfg: Merged config.
        datasets: Its opened data sets.

    Returns:
        Lines to log.

    Raises:
        DataError: If they contradict each other, with the lines to write.
    """
    segmentation = list(_heads(cfg, _SEGMENTATION))
    detection = list(_heads(cfg, _DETECTION))
    _check_weights(segmentation)
    notes = []
    for opened in datasets:
        with named(opened.loader, opened.settings):
            if segmentation and hasattr(opened.dataset, 'reduce_zero_label'):
                _check_ignored(cfg, opened, segmentation)
                notes += _check_segmentation(opened, segmentation)
            elif detection and opened.dataset is not None:
                _check_detection(opened.dataset, detection)
        if segmentation:
            _complete_checks(opened.settings.get('pipeline'), segmentation)
    if segmentation:
        _complete_checks(cfg.get('tta_pipeline'), segmentation)
    return list(dict.fromkeys(notes))


def label_rule(dataset: BaseDataset, cfg: Mapping) -> LabelRule:
    """The labels that a data set's files may hold in the training or test of a config.

    Args:
        dataset: An opened data set of MMSegmentation.
        cfg: Merged config; without a head that states its classes, the data set's own count.
    """
    heads = list(_heads(cfg, _SEGMENTATION))
    classes = dataset.metainfo.get('classes')
    return LabelRule(
        min((head.num_classes for head in heads), default=len(classes) if classes else None),
        heads[0].ignore_index if heads else getattr(dataset, 'ignore_index', 255),
        dataset.reduce_zero_label,
        dataset.label_map,
    )


def _heads(cfg: Mapping, places: Sequence[str]) -> Iterator[Head]:
    for place in places:
        node = cfg.get('model') or {}
        for part in place.split('.'):
            node = (node.get(part) if isinstance(node, Mapping) else None) or {}
        several = isinstance(node, Sequence)
        for number, head in enumerate(node if several else [node]):
            if isinstance(head.get('num_classes'), int):
                name = f'{place}[{number}]' if several else place
                weights = _class_weights(head.get('loss_decode'))
                yield Head(name, head['num_classes'], head.get('ignore_index', 255), weights)


def _class_weights(loss: object) -> int | None:
    """Number of class weights of a loss or of the first of several that has some."""
    losses = loss if isinstance(loss, Sequence) else [loss]
    found = [entry.get('class_weight') for entry in losses if isinstance(entry, Mapping)]
    return next((len(weights) for weights in found if isinstance(weights, Sequence)), None)


def _check_weights(heads: Sequence[Head]) -> None:
    for head in heads:
        if head.weights not in (None, head.num_classes):
            raise DataError(
                f'model.{head.place} has num_classes={head.num_classes} and a loss with '
                f'{head.weights} class weights; write as many weights in the order of the classes, '
                f'or model=dict({head.place}=dict(loss_decode=dict(class_weight=None)))'
            )


def _check_segmentation(opened: Opened, heads: Sequence[Head]) -> list[str]:
    """Heads with fewer classes cannot be trained; more are allowed, and said."""
    classes = opened.dataset.metainfo.get('classes')
    if not classes:
        return []
    count, name = len(classes), type(opened.dataset).__name__
    if any(head.num_classes < count for head in heads):
        raise DataError(
            f'{name} has {count} classes, which {_stated(heads)}; write {_written(heads, count)}, '
            "or the project's own classes: dataset=dict(type='BaseSegDataset', "
            'metainfo=dict(classes=(...)))'
        )
    if any(head.num_classes > count for head in heads):
        return [
            f'warning: {name} has {count} classes, which {_stated(heads)}; the outputs beyond are '
            f'never right. To match them write {_written(heads, count)}'
        ]
    return []


def _check_ignored(cfg: Mapping, opened: Opened, heads: Sequence[Head]) -> None:
    """Loader, data set, losses and evaluator must leave out the same label."""
    dataset, settings = opened.dataset, opened.settings
    for step in steps(settings.get('pipeline')):
        stated = step.get('reduce_zero_label')
        if step_name(step) == 'LoadAnnotations' and stated not in (None, dataset.reduce_zero_label):
            raise DataError(
                f'the data set has reduce_zero_label={dataset.reduce_zero_label}, its step '
                f'LoadAnnotations {stated}; leave it out of the step'
            )
    index = getattr(dataset, 'ignore_index', _IGNORED_BY_LOADER)
    renumbered = _IGNORED_BY_LOADER in (dataset.label_map or {}).values()
    if (dataset.reduce_zero_label or renumbered) and index != _IGNORED_BY_LOADER:
        raise DataError(
            f'ignore_index={index}, but the loader writes {_IGNORED_BY_LOADER} for what '
            f'{"reduce_zero_label" if dataset.reduce_zero_label else "metainfo.classes"} leaves '
            f'out; write ignore_index={_IGNORED_BY_LOADER}'
        )
    evaluators = cfg.get(opened.loader.replace('_dataloader', '_evaluator')) or ()
    evaluators = [evaluators] if isinstance(evaluators, Mapping) else evaluators
    others = {f'model.{head.place}': head.ignore_index for head in heads} | {
        f'evaluator {entry["type"]}': entry.get('ignore_index', _IGNORED_BY_LOADER)
        for entry in evaluators
        if entry.get('type') == 'IoUMetric'
    }
    for place, value in others.items():
        if value not in (None, index):
            raise DataError(
                f'the data set has ignore_index={index}, {place} has {value}: write the same in '
                'both (dataset=dict(ignore_index=...), decode_head, auxiliary_head and IoUMetric '
                'each have one)'
            )


def _check_detection(dataset: BaseDataset, heads: Sequence[Head]) -> None:
    """The evaluator looks the class of every output up, so that the numbers must be the same."""
    classes = dataset.metainfo.get('thing_classes') or dataset.metainfo.get('classes')
    # With return_classes the names themselves are the model's input (open vocabulary).
    if not classes or getattr(dataset, 'return_classes', False):
        return
    if any(head.num_classes != len(classes) for head in heads):
        raise DataError(
            f'{type(dataset).__name__} has {len(classes)} classes, which {_stated(heads)}; write '
            f'{_written(heads, len(classes))}, or metainfo=dict(classes=(...)) in every data set'
        )


def _complete_checks(pipeline: object, heads: Sequence[Head]) -> None:
    for step in steps(pipeline):
        if step_name(step) == 'CheckSample' and 'num_classes' not in step:
            step['num_classes'] = min(head.num_classes for head in heads)
            step.setdefault('ignore_index', heads[0].ignore_index)


def _stated(heads: Sequence[Head]) -> str:
    counts = ', '.join(f'model.{head.place}.num_classes={head.num_classes}' for head in heads)
    return f'does not fit {counts}'


def _written(heads: Sequence[Head], count: int) -> str:
    """What to write into the config, such as 'model=dict(decode_head=dict(num_classes=2))'."""
    tree: dict[str, list[str]] = {}
    for head in heads:
        outer, _, inner = head.place.partition('.')
        tree.setdefault(outer if inner else '', []).append(inner or outer)
    parts = []
    for outer, names in tree.items():
        text = ', '.join(
            f'{name}=dict(num_classes={count})'
            if '[' not in name
            else f'num_classes={count} in {name}'
            for name in names
        )
        parts.append(f'{outer}=dict({text})' if outer else text)
    return f'model=dict({", ".join(parts)})'
