# UperNet on a small ConvNeXt-dcls, from scratch on generated scenes: a demonstration, no published
# reference. 1 process x 8 images, float32, minutes on two CPU cores. Positions learn five times as
# fast as the rest and repel from the start.
_base_ = [
    './_base_/models/upernet.py',
    './_base_/datasets/ade20k_mini.py',
    './_base_/schedules/ade20k_mini.py',
    './_base_/runtime/segmentation.py',
]

model = dict(
    data_preprocessor=dict(size=(128, 128)),
    backbone=dict(
        type='mmlk.DCLSConvNeXt',
        arch=dict(depths=(2, 2, 4, 2), dims=(32, 64, 128, 192), kernel_count=24, kernel_size=17),
        # Without pretraining the layer scale starts where the blocks learn at once.
        layer_scale_init=1.0,
    ),
    decode_head=dict(
        in_channels=[32, 64, 128, 192],
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
    constructor='mmlk.LayerDecayConstructor',
    paramwise_cfg=dict(decay_rate=1.0, lr_multipliers={'.P': 5.0}),
)
custom_hooks = [dict(type='mmlk.DCLSRepulsionHook', begin=0)]
default_hooks = dict(
    dcls_clamp=dict(type='mmlk.DCLSClampHook'),
    checkpoint=dict(interval=325),
    logger=dict(interval=25),
)
