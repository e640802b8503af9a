# Cascade Mask R-CNN on ConvNeXt-T-dcls: 51.2 box AP, 44.5 mask AP (authors' README).
# 8 GPUs x 2 images, mixed precision, 36 epochs, short sides of 480 to 800 and crops (authors'
# detection configs; the warm-up is that of MMDetection 2.x's schedules, on which they build).
_base_ = [
    './_base_/models/cascade_mask_rcnn.py',
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

# Positions and biases do not decay; positions learn at the rate of their layer, as in the authors'
# dense-prediction code. That code has no clamp: it is added, since positions that leave the window
# would be lost.
optim_wrapper = dict(
    type='AmpOptimWrapper',
    optimizer=dict(type='AdamW', lr=2e-4, betas=(0.9, 0.999), weight_decay=0.05),
    constructor='mmlk.LayerDecayConstructor',
    paramwise_cfg=dict(decay_rate=0.7, decay_type='layer_wise', num_layers=6),
)
default_hooks = dict(dcls_clamp=dict(type='mmlk.DCLSClampHook'))
