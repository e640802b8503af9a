# Mask R-CNN on RecNeXt-M4: 43.5 box AP, 39.7 mask AP (authors' README: the best of 12 epochs,
# here the 10th; 43.2 and 39.5 after the last).
# 8 GPUs x 2 images, float32, 12 epochs, single-scale (configs inside the authors' logs).
_base_ = './mask_rcnn_recnext_m3_coco.py'
checkpoint = 'https://github.com/suous/RecNeXt/releases/download/v1.0/recnext_m4_distill_300e.pth'

model = dict(backbone=dict(arch='m4', init_cfg=dict(checkpoint=checkpoint)))
