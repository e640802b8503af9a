# UperNet on InceptionNeXt-A, from scratch on generated scenes: no published reference.
# 1 process x 8 images, float32, minutes on two CPU cores.
_base_ = [
    './_base_/models/upernet.py',
    './_base_/datasets/ade20k_mini.py',
    './_base_/schedules/ade20k_mini.py',
    './_base_/runtime/segmentation.py',
]

model = dict(
    data_preprocessor=dict(size=(128, 128)),
    # Without pretraining the layer scale starts where the blocks learn at once.
    backbone=dict(type='mmlk.InceptionNeXt', arch='atto', layer_scale_init=1.0),
    decode_head=dict(
        in_channels=[40, 80, 160, 320],
        channels=64,
        num_classes=20,
        # Small and thin classes count more, so that they too are learnt within minutes.
        loss_decode=dict(
            class_weight=[1, 1, 1, 1, 1, 1, 1, 1.5, 3, 2, 2, 2, 3, 1.5, 1.5, 2, 3, 3, 5, 4]
        ),
    ),
    auxiliary_head=None,
)
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=3e-3, weight_decay=0.05),
    paramwise_cfg=dict(norm_decay_mult=0.0, custom_keys={'.gamma': dict(decay_mult=0.0)}),
)
default_hooks = dict(checkpoint=dict(interval=325), logger=dict(interval=25))
