# Cascade Mask R-CNN on SLaK-T: 51.3 box AP, 44.3 mask AP (authors' README, row 300/36).
# 8 GPUs x 2 images, float32, 36 epochs, short sides of 480 to 800 and crops.
_base_ = './cascade_mask_rcnn_slak_t_coco.py'
# ImageNet-1K, 300 epochs, 40 % sparse.
checkpoint = 'mmlk://slak_tiny'

model = dict(backbone=dict(init_cfg=dict(checkpoint=checkpoint)))
max_epochs = 36
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, begin=0, end=500 + 1, by_epoch=False),
    dict(
        type='MultiStepLR', milestones=[27, 33], gamma=0.1, begin=0, end=max_epochs, by_epoch=True
    ),
]
train_cfg = dict(max_epochs=max_epochs)
