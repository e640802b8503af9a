# Semantic FPN on RecNeXt-M5: 46.0 mIoU, single-scale without flip (the authors' README and log).
# 8 GPUs x 4 images, float32, 80,000 iterations.
_base_ = './fpn_recnext_m3_ade20k.py'
checkpoint = 'https://github.com/suous/RecNeXt/releases/download/v1.0/recnext_m5_distill_300e.pth'

model = dict(
    backbone=dict(arch='m5', init_cfg=dict(checkpoint=checkpoint)),
    neck=dict(in_channels=[80, 160, 320, 640]),
)
