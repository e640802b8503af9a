# Mask R-CNN on RecNeXt-M0, from scratch on generated scenes: a demonstration, no published
# reference.
# 1 process x 4 images, float32, minutes on two CPU cores: narrow heads, few regions.
_base_ = [
    './_base_/models/mask_rcnn.py',
    './_base_/datasets/coco_mini.py',
    './_base_/schedules/coco_mini.py',
    './_base_/runtime/detection.py',
]

# Objects are 10 to 90 pixels wide: no map of stride 64, and anchors in steps of the square root of 2
# from 16 pixels on, so that four of five objects overlap one by 0.7 (one scale: one of three).
strides = [4, 8, 16, 32]
model = dict(
    backbone=dict(type='mmlk.RecNeXt', arch='m0'),
    neck=dict(
        in_channels=[40, 80, 160, 320], out_channels=64, num_outs=4, norm_cfg=dict(type='BN')
    ),
    rpn_head=dict(
        in_channels=64,
        feat_channels=64,
        anchor_generator=dict(scales=[4, 5.66], ratios=[0.5, 1.0, 2.5], strides=strides),
    ),
    roi_head=dict(
        # Half the usual size decides which map a region is read from, since the pictures are small.
        bbox_roi_extractor=dict(out_channels=64, finest_scale=28),
        bbox_head=dict(in_channels=64, fc_out_channels=128, num_classes=5),
        mask_roi_extractor=dict(out_channels=64, finest_scale=28),
        mask_head=dict(num_convs=2, in_channels=64, conv_out_channels=64, num_classes=5),
    ),
    train_cfg=dict(
        rpn=dict(sampler=dict(num=128)),
        rpn_proposal=dict(nms_pre=300, max_per_img=100),
        rcnn=dict(sampler=dict(num=32)),
    ),
    test_cfg=dict(rpn=dict(nms_pre=300, max_per_img=100), rcnn=dict(max_per_img=50)),
)
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
    clip_grad=dict(max_norm=10.0),
)
default_hooks = dict(logger=dict(interval=25))
