# Semantic FPN on RecNeXt-M0, from scratch on generated scenes: no published reference.
# 1 process x 8 images, float32, minutes on two CPU cores.
_base_ = [
    './_base_/models/semantic_fpn.py',
    './_base_/datasets/ade20k_mini.py',
    './_base_/schedules/ade20k_mini.py',
    './_base_/runtime/segmentation.py',
]

model = dict(
    data_preprocessor=dict(size=(128, 128)),
    backbone=dict(type='mmlk.RecNeXt', arch='m0'),
    neck=dict(in_channels=[40, 80, 160, 320], out_channels=64),
    decode_head=dict(
        in_channels=[64, 64, 64, 64],
        channels=32,
        num_classes=20,
        # Small and thin classes count more, so that they too are learnt within minutes.
        loss_decode=dict(
            class_weight=[1, 1, 1, 1, 1, 1, 1, 1.5, 3, 2, 2, 2, 3, 1.5, 1.5, 2, 3, 3, 5, 4]
        ),
    ),
)
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=3e-3, weight_decay=0.05))
default_hooks = dict(checkpoint=dict(interval=325), logger=dict(interval=25))
