"""Test-time settings of a config: size, augmentation, stored predictions, pictures."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from mmengine.config import Config, ConfigDict

from mmlk.data.opened import leaf_datasets

EXPORTED_NETWORK = 'mmlk.ExportedNetwork'

# Used where a detection config has no settings of its own, as MMDetection's test tool does.
_DETECTION_TTA_MODEL = dict(
    type='DetTTAModel', tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100)
)
_DETECTION_TTA_TAIL = dict(
    type='TestTimeAug',
    transforms=[
        [dict(type='RandomFlip', prob=1.0), dict(type='RandomFlip', prob=0.0)],
        [
            dict(
                type='PackDetInputs',
                meta_keys=(
                    'img_id',
                    'img_path',
                    'ori_shape',
                    'img_shape',
                    'scale_factor',
                    'flip',
                    'flip_direction',
                ),
            )
        ],
    ],
)

# Scope: task, and the metric that keeps its predictions in one file.
_DUMPS = dict(mmdet=('detection', 'DumpDetResults'), mmpretrain=('classification', 'DumpResults'))


def usual_shape(cfg: Config) -> tuple[int, int]:
    """Height and width at which the model of a config is counted and timed, unless they are given.

    A classifier's pictures end with a centre crop, whose size it is. Pictures of segmentors and
    detectors vary: 512 x 512, and 800 x 1280.
    """
    scope = cfg.get('default_scope')
    if scope != 'mmpretrain':
        return (800, 1280) if scope == 'mmdet' else (512, 512)
    dataset = (cfg.get('test_dataloader') or {}).get('dataset') or {}
    while 'dataset' in dataset:
        dataset = dataset.dataset
    steps = [step for step in dataset.get('pipeline') or () if 'crop_size' in step]
    size = steps[-1]['crop_size'] if steps else 224
    return (size, size) if isinstance(size, int) else (size[1], size[0])


def enable_tta(cfg: Config) -> None:
    """Wrap the model and replace the test pipeline for test-time augmentation (``--tta``).

    Raises:
        ValueError: If a segmentation config has no ``tta_model`` or ``tta_pipeline``, or a detection
            config evaluates masks, which MMDetection does not merge.
    """
    if cfg.get('default_scope') == 'mmdet' and _has_masks(cfg.model):
        raise ValueError(
            '--tta: MMDetection merges boxes of augmented images alone and refuses a model that '
            'predicts masks; for boxes alone add --cfg-options model.roi_head.mask_head=None '
            'model.roi_head.mask_roi_extractor=None test_evaluator.metric=bbox'
        )
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    if cfg.get('default_scope') == 'mmdet':
        cfg.setdefault('tta_model', _DETECTION_TTA_MODEL)
        cfg.setdefault('tta_pipeline', [*copy.deepcopy(dataset.pipeline[:-1]), _DETECTION_TTA_TAIL])
    missing = [key for key in ('tta_model', 'tta_pipeline') if key not in cfg]
    if missing:
        raise ValueError(f'--tta: the config has no {" and no ".join(missing)}')
    dataset.pipeline = cfg.tta_pipeline
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)


def _has_masks(node: Any) -> bool:
    """Whether a mask head stands anywhere under ``node``."""
    if isinstance(node, dict):
        return bool(node.get('mask_head')) or any(map(_has_masks, node.values()))
    return isinstance(node, (list, tuple)) and any(map(_has_masks, node))


def store_predictions(cfg: Config, out: str) -> None:
    """Keep the predictions (``--out``): PNGs in a folder for segmentation, one pickle otherwise.

    Raises:
        ValueError: If the name does not suit the task.
    """
    metrics = cfg.test_evaluator if isinstance(cfg.test_evaluator, list) else [cfg.test_evaluator]
    task, dump = _DUMPS.get(cfg.get('default_scope'), (None, None))
    if dump:
        if not out.endswith(('.pkl', '.pickle')):
            raise ValueError(f'--out {out}: {task} writes one file, its name must end in .pkl')
        cfg.test_evaluator = [*metrics, dict(type=dump, out_file_path=out)]
        return
    if out.endswith(('.pkl', '.pickle')):
        raise ValueError(f'--out {out}: segmentation writes PNG label maps, name a folder')
    # A config may hold one and the same dict for validation and test.
    cfg.test_evaluator = [dict(metric, output_dir=out) for metric in copy.deepcopy(metrics)]


def draw_predictions(cfg: Config, show: bool, show_dir: str | None, wait_time: float) -> None:
    """Draw truth and prediction of every test image (``--show``, ``--show-dir``).

    Raises:
        ValueError: If the config has no visualization hook to do it.
    """
    hook = (cfg.get('default_hooks') or {}).get('visualization')
    if hook is None:
        raise ValueError('--show, --show-dir: the config has no default_hooks.visualization')
    kept = {key: hook[key] for key in ('score_thr', 'backend_args') if hook.get(key) is not None}
    cfg.default_hooks.visualization = dict(
        type='mmlk.PicturesHook', out_dir=show_dir, show=show, wait_time=wait_time, **kept
    )


def use_exported(cfg: Config, file: str) -> None:
    """Test an exported file in the place of the config's model, in place.

    The file says how a picture is resized and cropped, so the test pipeline leaves that to it.

    Raises:
        ValueError: If there is no such file, or the run has several processes.
    """
    from mmlk.export.describe import SIZE_STEPS  # brings torch

    if not Path(file).is_file():
        raise ValueError(f'there is no file {file!r}')
    if cfg.get('launcher', 'none') != 'none':
        raise ValueError(f'{file}: an exported file is tested by one process; leave out --launcher')
    for dataset in leaf_datasets(cfg.test_dataloader.dataset):
        dataset.pipeline = [
            step for step in dataset.pipeline if step['type'].rpartition('.')[2] not in SIZE_STEPS
        ]
    # pictures of a batch may differ in size
    cfg.test_dataloader.collate_fn = dict(type='pseudo_collate')
    cfg.model = ConfigDict(type=EXPORTED_NETWORK, file=file)
    cfg.load_from = None
