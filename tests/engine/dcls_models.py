"""A classifier around a micro DCLS-ConvNeXt, and runners that train it on fixed noise."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn

from mmlk.backbones import DCLSConvNeXt

_RUNS = itertools.count()
ARCH = dict(depths=(2, 1, 1, 1), dims=(8, 12, 16, 20), kernel_count=5, kernel_size=9)
LIMIT = 4


class Classifier(BaseModel):
    """Mean over the last map, linear head."""

    def __init__(self, arch=None, **options):
        super().__init__()
        self.backbone = DCLSConvNeXt(
            arch or ARCH, out_indices=(3,), layer_scale_init=1.0, **options
        )
        self.head = nn.Linear(self.backbone.dims[-1], 4)

    def forward(self, inputs, labels, mode='loss'):
        logits = self.head(self.backbone(inputs)[0].mean((2, 3)))
        if mode == 'loss':
            return dict(loss=F.cross_entropy(logits, labels))
        return logits


class Noise(torch.utils.data.Dataset):
    """Images and labels that depend on the index alone."""

    def __len__(self):
        return 16

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        return dict(inputs=torch.randn(3, 32, 32, generator=generator), labels=index % 4)


def make_runner(work_dir, *, hooks=(), iterations=4, lr=1e-3, launcher='none', **options):
    """Runner with a high rate for positions, which throws them out of the window without a clamp."""
    torch.manual_seed(0)
    settings = dict(
        model=Classifier(),
        work_dir=str(work_dir),
        train_dataloader=dict(
            dataset=Noise(),
            batch_size=4,
            num_workers=0,
            collate_fn=dict(type='default_collate'),
            sampler=dict(type='InfiniteSampler', shuffle=True, seed=0),
        ),
        train_cfg=dict(by_epoch=False, max_iters=iterations),
        optim_wrapper=dict(
            type='OptimWrapper',
            optimizer=dict(type='AdamW', lr=lr, weight_decay=0.05),
            constructor='mmlk.LayerDecayConstructor',
            paramwise_cfg=dict(decay_rate=1.0, lr_multipliers={'.P': 2000.0}),
        ),
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2)),
        custom_hooks=list(hooks),
        launcher=launcher,
        default_scope='mmengine',
        log_level='ERROR',
        randomness=dict(seed=0),
        experiment_name=f'dcls_{next(_RUNS)}',
    )
    settings.update(options)
    return Runner(**settings)


def positions(model):
    """Positions of every stage, once each."""
    return {name: p for name, p in model.named_parameters() if name.endswith('dwconv.P')}
