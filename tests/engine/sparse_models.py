"""A classifier around a micro SLaK, and runners that train it on fixed data."""

from __future__ import annotations

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import nn

from mmlk.backbones import SLaK
from mmlk.engine import SparseMaskHook
from mmlk.engine.sparse import full_parameters
from tests.golden_weights import golden_input, golden_tensor

RECORDED_ARCH = dict(
    depths=(1, 1, 2, 1), dims=(20, 41, 83, 166), kernel_sizes=(13, 11, 9, 7), small_kernel_size=3
)
MICRO_ARCH = dict(
    depths=(1, 1, 1, 1), dims=(12, 16, 20, 24), kernel_sizes=(13, 11, 9, 7), small_kernel_size=3
)


class Classifier(BaseModel):
    """The authors' classifier: mean over the map, layer norm, linear head."""

    def __init__(self, arch=MICRO_ARCH, classes=10, **options):
        super().__init__()
        self.backbone = SLaK(arch, out_indices=(3,), output_norm=False, **options)
        self.norm = nn.LayerNorm(self.backbone.dims[-1], eps=1e-6)
        self.head = nn.Linear(self.backbone.dims[-1], classes)

    def forward(self, inputs, labels, mode='loss'):
        logits = self.head(self.norm(self.backbone(inputs)[0].mean((2, 3))))
        return dict(loss=F.cross_entropy(logits, labels))


class Images(torch.utils.data.Dataset):
    """Fixed noise images and labels."""

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return dict(inputs=self.images[index], labels=index % 10)


def recorded_classifier(gamma=None):
    """The recorded micro network with the recorded weights, or another layer scale."""
    model = Classifier(RECORDED_ARCH)
    state = model.state_dict()
    for key, value in state.items():
        state[key] = golden_tensor(key.removeprefix('backbone.'), value.shape, value.dtype)
        if gamma is not None and key.endswith('.gamma'):
            state[key] = torch.full_like(value, gamma)
    model.load_state_dict(state)
    return model


def stub_runner(model, max_iters=10, **optimizer):
    """What the hook uses of a runner, around the recorded batch."""
    loader = torch.utils.data.DataLoader(Images(golden_input((4, 3, 64, 64))), batch_size=4)
    options = dict(lr=1e-3, weight_decay=0.05, betas=(0.9, 0.999), eps=1e-8)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    other = [p for p in model.parameters() if p.ndim <= 1]
    wrapper = OptimWrapper(
        torch.optim.AdamW(
            [dict(params=decayed), dict(params=other, weight_decay=0.0)], **{**options, **optimizer}
        )
    )
    silent = SimpleNamespace(update_scalar=lambda *_, **__: None, add_scalars=lambda *_, **__: None)
    return SimpleNamespace(
        model=model,
        optim_wrapper=wrapper,
        max_iters=max_iters,
        hooks=[],
        _resume=False,
        train_loop=SimpleNamespace(dataloader=loader),
        message_hub=silent,
        visualizer=silent,
    )


class Recorder:
    """Densities and masks after every optimizer step, and weights found outside their masks."""

    def __init__(self, hook, model):
        self.hook, self.model = hook, model
        self.densities, self.strays, self.steps = [], 0, []

    def __call__(self, *_, **__):
        self.steps.append(self.hook.step)
        self.densities.append(self.hook.overall_density())
        with full_parameters(self.model) as params:
            self.strays += sum(
                int(params[name][~mask].count_nonzero()) for name, mask in self.hook.masks.items()
            )


def sparse_runner(
    work_dir,
    *,
    max_iters=8,
    hook=None,
    optim_wrapper=None,
    model=None,
    hooks=(),
    resume=False,
    checkpoint_interval=4,
    launcher='none',
    model_wrapper_cfg=None,
):
    """A runner on 32 noise images whose hook updates masks every second step."""
    hook = hook or SparseMaskHook(density=0.6, init='uniform', prune_rate=0.5, update_interval=2)
    torch.manual_seed(0)
    model = model or Classifier(layer_scale_init=1.0)
    images = torch.randn(32, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-3))
    runner = Runner(
        model=model,
        work_dir=str(work_dir),
        train_dataloader=dict(
            batch_size=4,
            num_workers=0,
            dataset=Images(images),
            sampler=dict(type='InfiniteSampler', shuffle=False),
            collate_fn=dict(type='default_collate'),
        ),
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=max_iters),
        optim_wrapper={**wrapper, **(optim_wrapper or {})},
        default_hooks=dict(
            checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=checkpoint_interval)
        ),
        custom_hooks=[hook, *hooks],
        default_scope='mmengine',
        experiment_name=f'sparse-{id(hook)}',
        randomness=dict(seed=0),
        log_level='WARNING',
        resume=resume,
        launcher=launcher,
        cfg=dict(model_wrapper_cfg=model_wrapper_cfg),
    )
    return runner, hook
