# UperNet on SLaK-S: 49.4 mIoU, single-scale without flip (authors' README; no multi-scale figure).
# 4 GPUs x 4 images, float32, 160,000 iterations (authors' segmentation configs).
_base_ = './upernet_slak_t_ade20k.py'
checkpoint = 'mmlk://slak_small'

model = dict(backbone=dict(arch='small', drop_path_rate=0.3, init_cfg=dict(checkpoint=checkpoint)))
optim_wrapper = dict(paramwise_cfg=dict(num_layers=12))
