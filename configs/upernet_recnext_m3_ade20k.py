# UperNet on RecNeXt-M3: no published reference; the authors give Semantic FPN results only.
# 8 GPUs x 2 images, float32, 160,000 iterations: UperNet schedule of the other backbones with the
# optimizer of RecNeXt's Semantic FPN.
_base_ = [
    './_base_/models/upernet.py',
    './_base_/datasets/ade20k.py',
    './_base_/schedules/ade20k_160k.py',
    './_base_/runtime/segmentation.py',
]
checkpoint = 'https://github.com/suous/RecNeXt/releases/download/v1.0/recnext_m3_distill_300e.pth'

model = dict(
    backbone=dict(
        type='mmlk.RecNeXt',
        arch='m3',
        norm_cfg=dict(type='SyncBN'),
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint),
    ),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256),
)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-4, weight_decay=0.05))
