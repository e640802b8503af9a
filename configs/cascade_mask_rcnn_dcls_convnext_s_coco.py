# Cascade Mask R-CNN on ConvNeXt-S-dcls: 52.8 box AP, 45.6 mask AP (authors' README).
# 8 GPUs x 2 images, mixed precision, 36 epochs, short sides of 480 to 800 and crops.
_base_ = './cascade_mask_rcnn_dcls_convnext_t_coco.py'
checkpoint = 'mmlk://convnext_dcls_small_1k_224_ema'

model = dict(backbone=dict(arch='small', drop_path_rate=0.6, init_cfg=dict(checkpoint=checkpoint)))
optim_wrapper = dict(paramwise_cfg=dict(num_layers=12))
