# Semantic FPN on InceptionNeXt-B: 46.4 mIoU, single-scale without flip (paper, Table 7).
# 8 GPUs x 4 images, float32, 40,000 iterations.
_base_ = './fpn_inceptionnext_t_ade20k.py'
checkpoint = (
    'https://github.com/sail-sg/inceptionnext/releases/download/model/inceptionnext_base.pth'
)

model = dict(
    backbone=dict(arch='base', drop_path_rate=0.2, init_cfg=dict(checkpoint=checkpoint)),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
