# Mask R-CNN on RecNeXt-M0, from scratch on generated scenes: a demonstration, no published
# reference.
# 1 process x 4 images, float32, minutes on two CPU cores: narrow heads, few proposals, small
# anchors.
_base_ = [
    './_base_/models/mask_rcnn.py',
    './_base_/datasets/coco_mini.py',
    './_base_/schedules/coco_mini.py',
    './_base_/runtime/detection.py',
]

model = dict(
    backbone=dict(type='mmlk.RecNeXt', arch='m0'),
    neck=dict(in_channels=[40, 80, 160, 320], out_channels=64, norm_cfg=dict(type='BN')),
    rpn_head=dict(in_channels=64, feat_channels=64, anchor_generator=dict(scales=[4])),
    roi_head=dict(
        # Half the usual size decides which map a region is read from, since the pictures are small.
        bbox_roi_extractor=dict(out_channels=64, finest_scale=28),
        bbox_head=dict(in_channels=64, fc_out_channels=256, num_classes=5),
        mask_roi_extractor=dict(out_channels=64, finest_scale=28),
        mask_head=dict(num_convs=2, in_channels=64, conv_out_channels=64, num_classes=5)),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=128)),
        rpn_proposal=dict(nms_pre=500, max_per_img=200),
        rcnn=dict(sampler=dict(num=64))),
    test_cfg=dict(rpn=dict(nms_pre=500, max_per_img=100), rcnn=dict(max_per_img=50)))
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
    clip_grad=dict(max_norm=10.0))
default_hooks = dict(checkpoint=dict(interval=4), logger=dict(interval=25))
