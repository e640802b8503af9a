"""A segmentation run small enough for tests: data, config, and tools started as users would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from tests.isolation import forget_instances
from tests.scripts import ROOT, load_tool

CONFIG = """
data_root = {data_root!r}
crop_size = (64, 64)
default_scope = 'mmseg'
norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor', mean=[127.5] * 3, std=[64.0] * 3, bgr_to_rgb=True,
        size=crop_size, pad_val=0, seg_pad_val=255),
    backbone=dict(
        type='mmlk.InceptionNeXt', arch=dict(depths=(1, 1, 1, 1), dims=(8, 16, 16, 16)),
        out_indices=(3,),
        norm_cfg=norm_cfg),
    decode_head=dict(
        type='FCNHead', in_channels=16, in_index=0, channels=8, num_convs=1, concat_input=False,
        dropout_ratio=0.0, num_classes=150, norm_cfg=norm_cfg, align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss')),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'))
pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='PackSegInputs'),
]
tta_model = dict(type='SegTTAModel')
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='TestTimeAug', transforms=[
        [dict(type='Resize', scale_factor=scale, keep_ratio=True) for scale in (0.75, 1.0)],
        [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)],
        [dict(type='LoadAnnotations', reduce_zero_label=True)],
        [dict(type='PackSegInputs')]]),
]
train_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='ADE20KDataset', data_root=data_root, pipeline=pipeline,
        data_prefix=dict(img_path='images/training', seg_map_path='annotations/training')))
val_dataloader = dict(
    batch_size=1, num_workers=0, sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='ADE20KDataset', data_root=data_root, pipeline=pipeline,
        data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation')))
test_dataloader = val_dataloader
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
optim_wrapper = dict(
    type='OptimWrapper', optimizer=dict(type='AdamW', lr=0.001, weight_decay=0.05),
    clip_grad=None)
param_scheduler = [dict(type='PolyLR', power=1.0, begin=0, end=1000, by_epoch=False)]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=4, val_interval=1000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
auto_scale_lr = dict(enable=False, base_batch_size=16)
env_cfg = dict(
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0), dist_cfg=dict(backend='nccl'))
default_hooks = dict(
    logger=dict(type='LoggerHook', interval=1, log_metric_by_epoch=False),
    checkpoint=dict(
        type='mmlk.SafeCheckpointHook', by_epoch=False, interval=2, max_keep_ckpts=2),
    visualization=dict(type='SegVisualizationHook'))
vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(type='SegLocalVisualizer', vis_backends=vis_backends, name='visualizer')
log_processor = dict(by_epoch=False, window_size=1)
log_level = 'INFO'
randomness = dict(seed=0)
load_from = None
resume = False
"""


def write_dataset(root: Path, size: int = 64) -> Path:
    """Twelve training and two validation pictures in ADE20K's layout; labels follow the colour."""
    random = np.random.RandomState(0)
    for split, count in (('training', 12), ('validation', 2)):
        for folder in ('images', 'annotations'):
            (root / folder / split).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            label = random.randint(0, 4, (size // 8, size // 8)).repeat(8, 0).repeat(8, 1)
            image = 60 * label[..., None] + random.randint(0, 40, (size, size, 3))
            name = f'ADE_{split}_{index:08d}'
            Image.fromarray(image.astype(np.uint8)).save(root / 'images' / split / f'{name}.jpg')
            Image.fromarray(label.astype(np.uint8)).save(
                root / 'annotations' / split / f'{name}.png'
            )
    return root


def write_config(folder: Path, data_root: Path, **replacements: str) -> Path:
    """The config above as a file; replacements are appended as assignments."""
    path = folder / 'tiny.py'
    lines = ''.join(f'{key} = {value}\n' for key, value in replacements.items())
    path.write_text(CONFIG.format(data_root=str(data_root)) + lines)
    return path


def environment(**changes: str) -> dict:
    """Environment of a child process: this checkout, one thread, no launcher variables."""
    inherited = {
        key: value
        for key, value in os.environ.items()
        if key not in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT')
    }
    return dict(
        inherited, PYTHONPATH=str(ROOT), CUDA_VISIBLE_DEVICES='-1', OMP_NUM_THREADS='1', **changes
    )


def run_tool(tool: str, *args, cwd: Path, **kwargs) -> subprocess.CompletedProcess:
    """Run ``tools/<tool>`` to its end; stdout and stderr come together as text."""
    return subprocess.run(
        [sys.executable, str(ROOT / 'tools' / tool), *map(str, args)],
        cwd=cwd,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment(),
        timeout=300,
        **kwargs,
    )


def start_two(*args, cwd: Path) -> subprocess.CompletedProcess:
    """Run ``tools/dist_train.sh`` with two processes on a config and the flags after it."""
    config, *flags = map(str, args)
    return subprocess.run(
        ['sh', str(ROOT / 'tools/dist_train.sh'), config, '2', *flags],
        cwd=cwd,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=300,
        env=environment(PYTHON=sys.executable, PORT=str(20000 + os.getpid() % 20000)),
    )


def call_tool(tool: str, *args, monkeypatch, cwd: Path) -> None:
    """Run ``tools/<tool>`` in this process, which saves the seconds that importing costs.

    MMEngine's named instances (visualizer, logger, message hub) start empty, as in a new process.
    """
    with monkeypatch.context() as patch:
        patch.chdir(cwd)
        patch.setattr(sys, 'path', list(sys.path))
        patch.setattr(sys, 'argv', [tool, *map(str, args)])
        patch.setenv('LOCAL_RANK', '0')
        # Undone with the context, unlike what the tool itself sets.
        patch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '0')
        forget_instances()
        load_tool(tool).main()


def scalars(work_dir: Path, key: str) -> list[float]:
    """Values of one logged quantity, in order, over all runs in a work folder."""
    lines = [
        line
        for file in sorted(work_dir.glob('*/vis_data/scalars.json'))
        for line in file.read_text().splitlines()
    ]
    return [record[key] for record in map(json.loads, lines) if key in record]
