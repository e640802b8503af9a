# Cascade Mask R-CNN on ConvNeXt-B-dcls: 53.0 box AP, 46.0 mask AP (authors' README).
# 8 GPUs x 2 images, mixed precision, 36 epochs, short sides of 480 to 800 and crops.
_base_ = './cascade_mask_rcnn_dcls_convnext_t_coco.py'
checkpoint = 'mmlk://convnext_dcls_base_1k_224_ema'

model = dict(
    backbone=dict(arch='base', drop_path_rate=0.7, init_cfg=dict(checkpoint=checkpoint)),
    neck=dict(in_channels=[128, 256, 512, 1024]),
)
optim_wrapper = dict(paramwise_cfg=dict(decay_rate=0.8, num_layers=12))
