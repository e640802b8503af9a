"""A classification run small enough for tests: generated pictures, config, sparse training."""

from __future__ import annotations

from pathlib import Path

from mmlk.data.folder import write_folder
from mmlk.data.scene import VERSION
from mmlk.data.writers import Parameters, dataset_files

PICTURES = Parameters(('classes',), train=32, val=16, height=56, width=56, seed=0)
SMALL = """
_base_ = 'mmlk::inceptionnext_a_in1k_mini.py'
max_epochs = 2
model = dict(
    backbone=dict(
        _delete_=True, type='mmlk.InceptionNeXt', out_indices=(3,), output_norm=False,
        arch=dict(depths=(1, 1, 1, 1), dims=(8, 16, 16, 16)), layer_scale_init=1.0),
    head=dict(in_channels=16))
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=48, edge='short'),
    dict(type='CenterCrop', crop_size=48),
    dict(type='PackInputs')]
train_dataloader = dict(
    batch_size=8, num_workers=0, persistent_workers=False, dataset=dict(pipeline=test_pipeline))
val_dataloader = dict(
    batch_size=8, num_workers=0, persistent_workers=False, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [dict(type='CosineAnnealingLR', T_max=2, by_epoch=True)]
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(save_best=None))
randomness = dict(seed=0)
"""
SPARSE = """
model = dict(
    backbone=dict(
        _delete_=True, type='mmlk.SLaK', out_indices=(3,), output_norm=False,
        arch=dict(
            depths=(1, 1, 1, 1), dims=(8, 16, 16, 24), kernel_sizes=(9, 7, 5, 3),
            small_kernel_size=3),
        layer_scale_init=1.0),
    head=dict(_delete_=True, type='mmlk.NormLinearClsHead', in_channels=24, num_classes=8))
custom_hooks = [
    dict(type='EMAHook', momentum=0.1, priority='ABOVE_NORMAL'),
    dict(type='mmlk.SparseMaskHook', density=0.6, prune_rate=0.5, update_interval=2,
         include=(r'^backbone\\.', r'^head\\.')),
]
"""


def write_pictures(root: Path) -> Path:
    """A folder with 32 pictures to train on, four iterations an epoch, and 16 to validate with."""
    write_folder(root, dataset_files(PICTURES), VERSION, PICTURES.as_dict())
    return root


def write_config(folder: Path, text: str = SMALL, more: str = '') -> Path:
    """The config as ``small.py``; ``more`` are lines of their own."""
    path = folder / 'small.py'
    path.write_text(text + more)
    return path
