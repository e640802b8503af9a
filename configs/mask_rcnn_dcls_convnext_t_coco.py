# Mask R-CNN on ConvNeXt-T-dcls: no published reference. The authors' repository has this config and
# no result of it; ConvNeXt-T reaches 46.2 box AP and 41.7 mask AP.
# 8 GPUs x 2 images, mixed precision, 36 epochs, short sides of 480 to 800 and crops.
_base_ = [
    './_base_/models/mask_rcnn.py',
    './_base_/datasets/coco_instance_ms.py',
    './_base_/schedules/coco_3x.py',
    './_base_/runtime/detection.py',
]
checkpoint = 'mmlk://convnext_dcls_tiny_1k_224_ema'

model = dict(
    backbone=dict(
        type='mmlk.DCLSConvNeXt',
        arch='tiny',
        drop_path_rate=0.4,
        layer_scale_init=1.0,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)

optim_wrapper = dict(
    type='AmpOptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    constructor='mmlk.LayerDecayConstructor',
    paramwise_cfg=dict(decay_rate=0.95, decay_type='layer_wise', num_layers=6),
)
default_hooks = dict(dcls_clamp=dict(type='mmlk.DCLSClampHook'))
