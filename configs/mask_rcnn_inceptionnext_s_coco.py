# Mask R-CNN on InceptionNeXt-S: no published reference.
# 8 GPUs x 2 images, float32, 12 epochs, single-scale.
_base_ = './mask_rcnn_inceptionnext_t_coco.py'
checkpoint = (
    'https://github.com/sail-sg/inceptionnext/releases/download/model/inceptionnext_small.pth'
)

model = dict(backbone=dict(arch='small', drop_path_rate=0.2, init_cfg=dict(checkpoint=checkpoint)))
