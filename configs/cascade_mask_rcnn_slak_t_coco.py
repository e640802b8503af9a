# Cascade Mask R-CNN on SLaK-T: 48.4 box AP, 41.8 mask AP (authors' README, row 120/12).
# 8 GPUs x 2 images, float32, 12 epochs, short sides of 480 to 800 and crops (authors' detection
# configs; the warm-up is that of MMDetection 2.x's schedules, on which they build).
_base_ = [
    './_base_/models/cascade_mask_rcnn.py',
    './_base_/datasets/coco_instance_ms.py',
    './_base_/schedules/coco_1x.py',
    './_base_/runtime/detection.py',
]
# ImageNet-1K, 120 epochs, 40 % sparse.
checkpoint = 'mmlk://slak_tiny_51_120e'

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
    optimizer=dict(type='AdamW', lr=2e-4, betas=(0.9, 0.999), weight_decay=0.05),
    constructor='mmlk.LayerDecayConstructor',
    paramwise_cfg=dict(decay_rate=0.7, decay_type='layer_wise', num_layers=6),
)
# Weights that are zero in the checkpoint stay zero. The authors mask at the start of each forward
# pass; here it is after each step, so that saved weights are as sparse as those that were tested.
default_hooks = dict(
    sparse_mask=dict(type='mmlk.SparseMaskHook', init='from_weights', update_interval=0)
)
