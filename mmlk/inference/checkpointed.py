"""A classifier, segmentor or detector of a config, with the weights of a checkpoint."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DATASETS, MODELS, DefaultScope
from mmengine.runner import load_state_dict
from torch import nn

from mmlk.checkpoints import fetch, read
from mmlk.cli import checks
from mmlk.cli.config import apply_overrides, drop_pretrained, load_config
from mmlk.cli.evaluation import enable_tta
from mmlk.cli.loading import require_coverage
from mmlk.data.opened import leaf_datasets
from mmlk.inference.model import Model
from mmlk.models.folding import folded_copy

TASKS = {'mmseg': 'segmentation', 'mmdet': 'detection', 'mmpretrain': 'classification'}
# Steps of a test pipeline that look at files which a picture in use does not have.
_FILE_STEPS = ('LoadImageFromFile', 'LoadAnnotations', 'CheckSample', 'LoadPanopticAnnotations')


class CheckpointedModel(Model):
    """What :func:`mmlk.load_model` returns for a config and a checkpoint.

    Args:
        network: Segmentor (MMSegmentation), detector (MMDetection) or classifier (MMPretrain) in
            eval mode.
        cfg: Its config.
        classes: ``classes`` and ``palette``.
        device: Where to compute.
        tta: Augment at test time as the config says, and merge.

    Attributes:
        cfg: The config.
        module: The network, in eval mode.

    Raises:
        ValueError: If the config is of another task, has no settings for ``tta``, or the network takes
            neither one channel nor three.
    """

    def __init__(
        self,
        network: nn.Module,
        cfg: Config,
        classes: dict[str, Any],
        device: str | torch.device,
        tta: bool = False,
    ) -> None:
        scope = cfg.get('default_scope')
        if scope not in TASKS:
            raise ValueError(
                f'load_model: the config is of scope {scope!r}; segmentors (mmseg), detectors '
                f'(mmdet) and classifiers (mmpretrain) can be used for prediction'
            )
        super().__init__(TASKS[scope], **classes)
        self.cfg, self.module, self._runner = cfg, network, network
        channels = getattr(getattr(network, 'backbone', None), 'in_channels', 3)
        if channels not in (1, 3):
            raise ValueError(
                f'load_model: the network takes {channels} channels, pictures have one or three; '
                'predict its files by "mmlk test CONFIG CHECKPOINT --out"'
            )
        self._grey = channels == 1
        steps = next(leaf_datasets(cfg.test_dataloader.dataset)).pipeline
        with DefaultScope.overwrite_default_scope(scope):
            if tta:
                augmented = copy.deepcopy(cfg)
                enable_tta(augmented)
                steps = augmented.tta_pipeline
                self._runner = MODELS.build(dict(augmented.model, module=network)).eval()
            self._pipeline = Compose(_without_files(steps))
        self._runner.to(device)

    def _prepare(self, image: np.ndarray) -> tuple[dict, Any]:
        size = image.shape[:2]
        image = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) if self._grey else image
        sample = self._pipeline(dict(img=image, img_path=None, img_shape=size, ori_shape=size))
        inputs = sample['inputs'] if isinstance(sample['inputs'], list) else [sample['inputs']]
        return sample, (size, [tuple(tensor.shape) for tensor in inputs])

    def network_input(self, image: np.ndarray) -> torch.Tensor:
        """A picture as the network sees it: resized, normalised, padded.

        Args:
            image: uint8 array (H, W, 3), BGR.

        Returns:
            Batch of one (1, C, H', W') on the network's device.

        Raises:
            ValueError: If test-time augmentation makes several of it.
        """
        sample, _ = self._prepare(image)
        if isinstance(sample['inputs'], list):
            raise ValueError('network_input: test-time augmentation makes several images of one')
        return self.module.data_preprocessor(pseudo_collate([sample]))['inputs']

    @torch.no_grad()
    def _forward(self, samples: list[dict]) -> list[dict[str, np.ndarray]]:
        results = self._runner.test_step(pseudo_collate(samples))
        read = dict(segmentation=_labels, detection=_objects, classification=_class_scores)
        return [read[self.task](result) for result in results]


def load(
    config: str | None,
    checkpoint: str,
    device: str | torch.device,
    tta: bool,
    fold: bool = True,
    unsafe_pickle: bool = False,
    overrides: dict | None = None,
) -> CheckpointedModel:
    """Read both files and build the model; see :func:`mmlk.load_model`.

    Args:
        config: File, or None to take the config from the checkpoint.
    """
    network, cfg, classes = network_and_classes(config, checkpoint, unsafe_pickle, overrides)
    network = folded_copy(network)[0] if fold else network
    return CheckpointedModel(network, cfg, classes, device=device, tta=tta)


def network_and_classes(
    config: str | None,
    checkpoint: str | None,
    unsafe_pickle: bool = False,
    overrides: dict | None = None,
) -> tuple[nn.Module, Config, dict[str, Any]]:
    """Network in eval mode, its config, and class names with colours.

    Args:
        config: File, or None to take the config from the checkpoint.
        checkpoint: File; None leaves the weights random.
        unsafe_pickle: Let the checkpoint run code while it is read.
        overrides: Of the config, as ``--cfg-options`` gives them.

    Raises:
        ValueError: If there is no config, or the class names do not fit the heads.
        RuntimeError: If the checkpoint is damaged or does not cover the network.
    """
    network, cfg, meta = network_of(config, checkpoint, unsafe_pickle, overrides)
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        classes = describe_classes(next(leaf_datasets(cfg.test_dataloader.dataset)), meta)
    check_class_count(network, classes['classes'])
    return network, cfg, classes


def network_of(
    config: str | None,
    checkpoint: str | None,
    unsafe_pickle: bool = False,
    overrides: dict | None = None,
) -> tuple[nn.Module, Config, dict]:
    """Network in eval mode, its config, and what the checkpoint says about itself.

    Arguments and errors are those of :func:`network_and_classes`; classes need no names.
    """
    state, meta = (None, {}) if checkpoint is None else read_whole(checkpoint, unsafe_pickle)
    cfg = config_of(config, checkpoint, meta)
    apply_overrides(cfg, overrides or {})
    if cfg.get('data_preprocessor'):  # where MMPretrain's configs have it; its runner moves it
        cfg.model.setdefault('data_preprocessor', cfg.data_preprocessor)
    checks.check_packages(cfg)
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        try:
            network = load_network(cfg, state)
        except (RuntimeError, ValueError) as error:
            where = config or 'its own config'
            raise RuntimeError(f'load_model: {checkpoint} does not fit {where}: {error}') from error
    return network, cfg, meta


def read_whole(checkpoint: str, unsafe_pickle: bool = False) -> tuple[Mapping, dict]:
    """State dict of a checkpoint, as it was written, and what the file says about itself.

    Raises:
        RuntimeError: If the file is damaged, or code would have to be run to read it.
    """
    path = fetch.locate(checkpoint)
    content = read.load_file(path, unsafe=unsafe_pickle)
    state, _ = read.unwrap(content, path)
    meta = content.get('meta') if isinstance(content, Mapping) else None
    return state, dict(meta) if isinstance(meta, Mapping) else {}


def config_of(config: str | None, checkpoint: str, meta: dict) -> Config:
    """The config of a file, or else the one inside the checkpoint.

    Raises:
        ValueError: If there is none.
    """
    if config is not None:
        return load_config(config)
    if not isinstance(meta.get('cfg'), str):
        raise ValueError(f'load_model: {checkpoint} holds no config; give the config as well')
    return Config.fromstring(meta['cfg'], '.py')


def load_network(cfg: Config, state: Mapping | None) -> nn.Module:
    """The network of ``cfg`` with the weights of ``state``, in eval mode, on the CPU.

    Args:
        cfg: Its scope must be the default scope.
        state: State dict of the whole network; None leaves the weights random.

    Raises:
        RuntimeError: If a weight is missing or has another shape.
        ValueError: If the backbone is another one.
    """
    network = revert_sync_batchnorm(MODELS.build(drop_pretrained(cfg.model))).eval()
    if state is None:
        return network
    require_coverage(network)
    load_state_dict(network, state)
    return network


def describe_classes(dataset: dict, meta: dict) -> dict[str, Any]:
    """Class names and colours: those the weights were trained with, else those of the config.

    Args:
        dataset: Config of the test data.
        meta: ``meta`` of a checkpoint of MMEngine or of mmcv 1.x.

    Raises:
        ValueError: If nothing names them.
    """
    known = DATASETS.build(dict(dataset, lazy_init=True)).metainfo
    trained = {key.lower(): value for key, value in (meta.get('dataset_meta') or {}).items()}
    classes = trained.get('classes') or meta.get('CLASSES') or known.get('classes')
    if not classes:
        raise ValueError(
            'load_model: neither the checkpoint nor the config names the classes; set '
            'metainfo=dict(classes=(...)) of the test data in the config'
        )
    palette = trained.get('palette') or meta.get('PALETTE')
    if not palette:
        palette = (
            known.get('palette') if tuple(known.get('classes') or ()) == tuple(classes) else None
        )
    palette = list(palette or [])[: len(classes)]
    return dict(classes=tuple(classes), palette=palette + _colours(len(palette), len(classes)))


def check_class_count(network: nn.Module, classes: tuple[str, ...]) -> None:
    """Raise if the heads tell apart another number of classes than have names.

    Raises:
        ValueError: With both numbers.
    """
    roi_head = getattr(network, 'roi_head', None)
    heads = (getattr(network, 'decode_head', None), getattr(roi_head, 'bbox_head', None))
    head = next(filter(None, heads), getattr(network, 'head', None))
    head = head[-1] if isinstance(head, nn.ModuleList) else head
    count = getattr(head, 'num_classes', len(classes))
    if count != len(classes):
        raise ValueError(
            f'load_model: the model tells {count} classes apart, but config and checkpoint name '
            f'{len(classes)} ({", ".join(classes[:3])}, ...); set metainfo.classes of the test '
            f'data in the config'
        )


def _without_files(steps: list) -> list:
    """Test pipeline for a picture that is in memory and has no annotations."""
    kept = []
    for step in copy.deepcopy(list(steps)):
        if isinstance(step, (list, tuple)):
            inner = _without_files(step)
            if inner or not step:
                kept.append(inner)
        elif step['type'].rpartition('.')[2] not in _FILE_STEPS:
            if 'transforms' in step:
                step['transforms'] = _without_files(step['transforms'])
            kept.append(step)
    return kept


def _labels(result: Any) -> dict[str, np.ndarray]:
    return dict(labels=result.pred_sem_seg.data[0].cpu().numpy().astype(np.int32))


def _class_scores(result: Any) -> dict[str, np.ndarray]:
    return dict(class_scores=_array(result.pred_score))


def _objects(result: Any) -> dict[str, np.ndarray]:
    found = result.pred_instances
    order = found.scores.argsort(descending=True)
    fields = dict(boxes='bboxes', scores='scores', box_labels='labels', masks='masks')
    return {
        ours: _array(found[theirs])[order.cpu().numpy()]
        for ours, theirs in fields.items()
        if theirs in found
    }


def _array(values: torch.Tensor | np.ndarray) -> np.ndarray:
    return values.cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)


def _colours(first: int, count: int) -> list[tuple[int, int, int]]:
    """Colours for the classes ``first`` to ``count`` that are far apart, the same each time."""
    import colorsys

    hues = ((index * 0.618034) % 1 for index in range(first, count))
    values = (0.95 if index % 2 else 0.65 for index in range(first, count))
    return [
        tuple(round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.75, value))
        for hue, value in zip(hues, values)
    ]
