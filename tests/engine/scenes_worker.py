"""A sparse training on generated scenes that can be killed; started by test_sparse_scenes."""

import os
import signal
import sys

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

from tests.engine.sparse_models import MICRO_ARCH, Recorder


def config(data_root: str, work_dir: str, resume: bool) -> Config:
    """Eight iterations of a micro SLaK with an FCN head; nothing random after the start."""
    pipeline = [
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations'),
        dict(type='Resize', scale=(64, 64), keep_ratio=False),
        dict(type='PackSegInputs'),
    ]
    return Config(
        dict(
            default_scope='mmseg',
            work_dir=work_dir,
            resume=resume,
            randomness=dict(seed=0),
            model=dict(
                type='EncoderDecoder',
                data_preprocessor=dict(
                    type='SegDataPreProcessor', mean=[127.5] * 3, std=[60.0] * 3, size=(64, 64)
                ),
                backbone=dict(type='mmlk.SLaK', arch=MICRO_ARCH, layer_scale_init=1.0),
                decode_head=dict(
                    type='FCNHead',
                    in_channels=24,
                    in_index=3,
                    channels=16,
                    num_convs=1,
                    dropout_ratio=0,
                    num_classes=150,
                    norm_cfg=dict(type='BN'),
                ),
            ),
            train_dataloader=dict(
                batch_size=2,
                num_workers=0,
                sampler=dict(type='InfiniteSampler', shuffle=True),
                dataset=dict(
                    type='ADE20KDataset',
                    data_root=data_root,
                    pipeline=pipeline,
                    data_prefix=dict(
                        img_path='images/training', seg_map_path='annotations/training'
                    ),
                ),
            ),
            optim_wrapper=dict(
                type='OptimWrapper',
                optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
                constructor='mmlk.LayerDecayConstructor',
                paramwise_cfg=dict(decay_rate=0.9),
            ),
            train_cfg=dict(type='IterBasedTrainLoop', max_iters=8),
            custom_hooks=[dict(type='mmlk.SparseMaskHook', density=0.6, update_interval=2)],
            default_hooks=dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=4)),
        )
    )


def main(data_root: str, work_dir: str, kill_at: int, resume: bool) -> None:
    """Train; die by SIGKILL before iteration ``kill_at``, or leave masks and densities behind."""
    torch.set_num_threads(1)
    runner = Runner.from_cfg(config(data_root, work_dir, resume))
    hook = next(hook for hook in runner.hooks if type(hook).__name__ == 'SparseMaskHook')
    recorder = Recorder(hook, runner.model)
    recording = Hook()
    recording.after_train_iter = recorder
    recording.before_train_iter = lambda runner, **_: (
        runner.iter == kill_at and os.kill(os.getpid(), signal.SIGKILL)
    )
    runner.register_hook(recording, 'VERY_LOW')
    runner.train()
    torch.save(
        dict(masks=hook.masks, densities=recorder.densities, strays=recorder.strays),
        f'{work_dir}/result.pt',
    )


if __name__ == '__main__':
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4] == 'resume')
