# UperNet on InceptionNeXt-S: 50.0 mIoU with multi-scale and flip (paper, Table 6; run with --tta).
# 8 GPUs x 2 images, float32, 160,000 iterations.
_base_ = './upernet_inceptionnext_t_ade20k.py'
checkpoint = (
    'https://github.com/sail-sg/inceptionnext/releases/download/model/inceptionnext_small.pth'
)

model = dict(backbone=dict(arch='small', drop_path_rate=0.3, init_cfg=dict(checkpoint=checkpoint)))
