# Semantic FPN on InceptionNeXt-T: 43.1 mIoU, single-scale without flip (paper, Table 7).
# 8 GPUs x 4 images, float32, 40,000 iterations (paper, Sec. 4.2 and Table 10; the rest, the test-time
# stretch to multiples of 32 included, follows PoolFormer, which the paper says it does).
_base_ = [
    './_base_/models/semantic_fpn.py',
    './_base_/datasets/ade20k_multiple32.py',
    './_base_/schedules/ade20k_40k.py',
    './_base_/runtime/segmentation.py',
]
checkpoint = (
    'https://github.com/sail-sg/inceptionnext/releases/download/model/inceptionnext_tiny.pth'
)

model = dict(
    backbone=dict(
        type='mmlk.InceptionNeXt',
        arch='tiny',
        drop_path_rate=0.1,
        norm_cfg=dict(type='SyncBN'),
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
train_dataloader = dict(batch_size=4)

# PoolFormer's recipe sets nothing per parameter: every parameter decays.
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=2e-4, weight_decay=1e-4))
default_hooks = dict(checkpoint=dict(interval=4000))
