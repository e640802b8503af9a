# SLaK-S on ImageNet-1K: top-1 83.8 (authors' README).
# Sparse from scratch: 40 % of the weights are zero. 8 GPUs x 64 images x 8 accumulated steps,
# float32, 300 epochs, averaged weights.
_base_ = [
    './_base_/models/image_classifier.py',
    './_base_/datasets/imagenet.py',
    './_base_/schedules/imagenet_300e.py',
    './_base_/runtime/classification.py',
]
accumulative_counts = 8
model = dict(
    backbone=dict(type='mmlk.SLaK', arch='small', drop_path_rate=0.4, norm_cfg=dict(type='SyncBN')),
    head=dict(type='mmlk.NormLinearClsHead', in_channels=998),
)
train_dataloader = dict(batch_size=64)
optim_wrapper = dict(accumulative_counts=accumulative_counts)
# Updates count optimizer steps. Stem and head are masked like the rest; at a layer scale of 1e-6 SNIP
# leaves both dense. Its batch is mixed like every other here; the authors take labels that are not.
custom_hooks = [
    dict(
        type='EMAHook',
        momentum=1e-4,
        interval=accumulative_counts,
        update_buffers=True,
        priority='ABOVE_NORMAL',
    ),
]
default_hooks = dict(
    sparse_mask=dict(
        type='mmlk.SparseMaskHook',
        density=0.6,
        init='snip',
        growth='bernoulli',
        prune_rate=0.3,
        update_interval=100,
        include=(r'^backbone\.', r'^head\.'),
    )
)
