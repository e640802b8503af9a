# UperNet on ConvNeXt-B-dcls: 49.3 mIoU single-scale, 49.6 with multi-scale and flip (authors' README).
# 8 GPUs x 2 images, mixed precision, 160,000 iterations.
_base_ = './upernet_dcls_convnext_t_ade20k.py'
checkpoint = 'mmlk://convnext_dcls_base_1k_224_ema'

model = dict(
    backbone=dict(arch='base', drop_path_rate=0.4, init_cfg=dict(checkpoint=checkpoint)),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
)
optim_wrapper = dict(paramwise_cfg=dict(num_layers=12))
