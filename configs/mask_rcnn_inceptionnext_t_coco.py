# Mask R-CNN on InceptionNeXt-T: no published reference, its authors report no detection. The recipe
# is that of RecNeXt, the other MetaNeXt, with the drop path of InceptionNeXt's Semantic FPN.
# 8 GPUs x 2 images, float32, 12 epochs, single-scale.
_base_ = [
    './_base_/models/mask_rcnn.py',
    './_base_/datasets/coco_instance.py',
    './_base_/schedules/coco_1x.py',
    './_base_/runtime/detection.py',
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

optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=2e-4, weight_decay=0.05))
