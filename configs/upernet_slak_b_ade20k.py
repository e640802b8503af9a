# UperNet on SLaK-B: 50.0 mIoU, single-scale without flip (authors' README; no multi-scale figure).
# InternImage's table 5 quotes 50.2 from the paper.
# 4 GPUs x 4 images, float32, 160,000 iterations (authors' segmentation configs).
_base_ = './upernet_slak_t_ade20k.py'
checkpoint = 'mmlk://slak_base'

model = dict(
    backbone=dict(arch='base', drop_path_rate=0.4, init_cfg=dict(checkpoint=checkpoint)),
    decode_head=dict(in_channels=[166, 332, 665, 1331]),
    auxiliary_head=dict(in_channels=665),
)
optim_wrapper = dict(paramwise_cfg=dict(num_layers=12))
