# Mask R-CNN on RecNeXt-A4: 43.5 box AP, 39.8 mask AP (authors' README: the best of 12 epochs,
# here the 10th; 43.2 and 39.6 after the last).
# 8 GPUs x 2 images, float32, 12 epochs, single-scale (configs inside the authors' logs).
_base_ = './mask_rcnn_recnext_m3_coco.py'
checkpoint = 'https://github.com/suous/RecNeXt/releases/download/v2.0/recnext_a4_distill_300e.pth'

model = dict(backbone=dict(arch='a4', init_cfg=dict(checkpoint=checkpoint)))
