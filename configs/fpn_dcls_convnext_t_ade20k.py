# Semantic FPN on ConvNeXt-T-dcls: no published reference. The recipe is that of Semantic FPN on
# InceptionNeXt-T: 8 GPUs x 4 images, float32, 40,000 iterations.
_base_ = [
    './_base_/models/semantic_fpn.py',
    './_base_/datasets/ade20k_multiple32.py',
    './_base_/schedules/ade20k_40k.py',
    './_base_/runtime/segmentation.py',
]
checkpoint = 'mmlk://convnext_dcls_tiny_1k_224_ema'

model = dict(
    backbone=dict(
        type='mmlk.DCLSConvNeXt',
        arch='tiny',
        drop_path_rate=0.1,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
train_dataloader = dict(batch_size=4)

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-4, weight_decay=1e-4),
    paramwise_cfg=dict(custom_keys={'dwconv.P': dict(decay_mult=0.0)}),
)
default_hooks = dict(dcls_clamp=dict(type='mmlk.DCLSClampHook'), checkpoint=dict(interval=4000))
