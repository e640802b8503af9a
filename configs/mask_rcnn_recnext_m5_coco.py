# Mask R-CNN on RecNeXt-M5: 44.6 box AP, 40.6 mask AP (authors' README: the best of 12 epochs,
# here the 9th; 44.1 and 40.1 after the last).
# 8 GPUs x 2 images, float32, 12 epochs, single-scale (configs inside the authors' logs).
_base_ = './mask_rcnn_recnext_m3_coco.py'
checkpoint = 'https://github.com/suous/RecNeXt/releases/download/v1.0/recnext_m5_distill_300e.pth'

model = dict(
    backbone=dict(arch='m5', init_cfg=dict(checkpoint=checkpoint)),
    neck=dict(in_channels=[80, 160, 320, 640]),
)
