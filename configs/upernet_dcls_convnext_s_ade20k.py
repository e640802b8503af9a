# UperNet on ConvNeXt-S-dcls: 48.4 mIoU single-scale, 49.0 with multi-scale and flip (authors' README).
# 8 GPUs x 2 images, mixed precision, 160,000 iterations.
_base_ = './upernet_dcls_convnext_t_ade20k.py'
checkpoint = 'mmlk://convnext_dcls_small_1k_224_ema'

model = dict(backbone=dict(arch='small', drop_path_rate=0.3, init_cfg=dict(checkpoint=checkpoint)))
optim_wrapper = dict(paramwise_cfg=dict(num_layers=12))
