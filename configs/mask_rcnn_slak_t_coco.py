# Mask R-CNN on SLaK-T: no published reference, the authors trained Cascade Mask R-CNN alone. Data,
# epochs and fixed masks are those of their 12-epoch run; rate and layer-wise decay are those that
# ConvNeXt and ConvNeXt-dcls use with this head.
# 8 GPUs x 2 images, float32, 12 epochs, short sides of 480 to 800 and crops.
_base_ = [
    './_base_/models/mask_rcnn.py',
    './_base_/datasets/coco_instance_ms.py',
    './_base_/schedules/coco_1x.py',
    './_base_/runtime/detection.py',
]
# ImageNet-1K, 300 epochs, 40 % sparse.
checkpoint = 'mmlk://slak_tiny'

model = dict(
    backbone=dict(
        type='mmlk.SLaK',
        arch='tiny',
        drop_path_rate=0.4,
        layer_scale_init=1.0,
        norm_cfg=dict(type='SyncBN'),
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint),
    ),
    neck=dict(in_channels=[124, 249, 499, 998]),
)

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    constructor='mmlk.LayerDecayConstructor',
    paramwise_cfg=dict(decay_rate=0.95, decay_type='layer_wise', num_layers=6),
)
default_hooks = dict(
    sparse_mask=dict(type='mmlk.SparseMaskHook', init='from_weights', update_interval=0)
)
