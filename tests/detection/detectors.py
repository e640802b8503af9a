"""The detectors of the configs with backbones and heads small enough to train in a test."""

from __future__ import annotations

import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.structures import InstanceData

import mmlk
from mmlk.registry import MODELS
from tests.cases import MICRO_ARCHS

WIDTH = 16


def small_config(name: str) -> Config:
    """A config of the package with a micro backbone, narrow heads and no weights to load."""
    config = Config.fromfile(mmlk.config_path(name))
    model = config.model
    model.backbone.arch = MICRO_ARCHS[model.backbone.type.removeprefix('mmlk.')]
    model.backbone.pop('init_cfg', None)
    model.neck.in_channels = list(MODELS.build(model.backbone).out_channels)
    model.neck.out_channels = WIDTH
    model.rpn_head.update(in_channels=WIDTH, feat_channels=WIDTH)
    boxes = model.roi_head.bbox_head
    for head in boxes if isinstance(boxes, list) else [boxes]:
        head.update(in_channels=WIDTH, conv_out_channels=WIDTH, fc_out_channels=32)
    model.roi_head.mask_head.update(in_channels=WIDTH, conv_out_channels=WIDTH)
    for extractor in (model.roi_head.bbox_roi_extractor, model.roi_head.mask_roi_extractor):
        extractor.out_channels = WIDTH
    stages = model.train_cfg.rcnn
    for stage in stages if isinstance(stages, list) else [stages]:
        stage.sampler.num = 32
    model.train_cfg.rpn_proposal.update(nms_pre=100, max_per_img=50)
    model.test_cfg.rpn.update(nms_pre=100, max_per_img=50)
    model.test_cfg.rcnn.score_thr = 0.0  # an untrained head gives no class more than 1/81
    return config


def on_scenes(config: Config, root, work_dir) -> Config:
    """The config with one epoch on the generated scenes of ``root``, at their own size."""
    mini = Config.fromfile(mmlk.config_path('_base_/datasets/coco_mini.py'))
    for key in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        config[key] = dict(mini[key], num_workers=0, persistent_workers=False)
        config[key].dataset.data_root = str(root)
        config[key].dataset.pop('metainfo')
    config.train_dataloader.batch_size = 2
    for key in ('val_evaluator', 'test_evaluator'):
        config[key].ann_file = f'{root}/annotations/instances_val2017.json'
    config.data_root = str(root)
    config.train_cfg.max_epochs = 1
    config.param_scheduler = []
    config.work_dir = str(work_dir)
    config.randomness = dict(seed=0)
    config.visualizer.vis_backends = []
    if 'sparse_mask' in config.default_hooks:
        # Random weights have no zeros to start from.
        config.default_hooks.sparse_mask.init = 'uniform'
    return config


def build(config: Config) -> torch.nn.Module:
    """The detector on one process, that is, without synchronised norms."""
    from mmdet.registry import MODELS as DETECTORS
    from mmengine.model import revert_sync_batchnorm

    init_default_scope('mmdet')
    return revert_sync_batchnorm(DETECTORS.build(config.model))


def batch(detector: torch.nn.Module, objects: int, size: int = 96) -> dict:
    """Two random images, each with ``objects`` boxes and masks, as the model's ``loss`` takes them."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks

    samples = []
    for _ in range(2):
        corner = torch.rand(objects, 2) * size / 2
        boxes = torch.cat([corner, corner + size / 3], dim=1)
        masks = torch.zeros(objects, size, size)
        for mask, (left, top, right, bottom) in zip(masks, boxes.long(), strict=True):
            mask[top:bottom, left:right] = 1
        sample = DetDataSample(
            metainfo=dict(img_shape=(size, size), ori_shape=(size, size), scale_factor=(1.0, 1.0))
        )
        sample.gt_instances = InstanceData(
            bboxes=boxes,
            labels=torch.randint(0, 80, (objects,)),
            masks=BitmapMasks(masks.byte().numpy(), size, size),
        )
        sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4))
        samples.append(sample)
    images = [torch.randint(0, 255, (3, size, size), dtype=torch.uint8) for _ in samples]
    return detector.data_preprocessor(dict(inputs=images, data_samples=samples), training=True)
