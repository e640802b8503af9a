# UperNet on InceptionNeXt-B: 50.6 mIoU with multi-scale and flip (paper, Table 6; run with --tta).
# 8 GPUs x 2 images, float32, 160,000 iterations.
_base_ = './upernet_inceptionnext_t_ade20k.py'
checkpoint = (
    'https://github.com/sail-sg/inceptionnext/releases/download/model/inceptionnext_base.pth'
)

model = dict(
    backbone=dict(arch='base', drop_path_rate=0.4, init_cfg=dict(checkpoint=checkpoint)),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
)
