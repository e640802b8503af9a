# UperNet on InceptionNeXt-T: 47.9 mIoU with multi-scale and flip (paper, Table 6; run with --tta).
# Single-scale figures were not published; the author calls them similar to ConvNeXt's (46.0).
# 8 GPUs x 2 images, float32, 160,000 iterations (paper, Table 10; the rest follows Swin's UperNet).
_base_ = [
    './_base_/models/upernet.py',
    './_base_/datasets/ade20k.py',
    './_base_/schedules/ade20k_160k.py',
    './_base_/runtime/segmentation.py',
]
checkpoint = (
    'https://github.com/sail-sg/inceptionnext/releases/download/model/inceptionnext_tiny.pth'
)

model = dict(
    backbone=dict(
        type='mmlk.InceptionNeXt',
        arch='tiny',
        drop_path_rate=0.2,
        norm_cfg=dict(type='SyncBN'),
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint),
    ),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)

# The paper does not say which parameters decay. Swin's recipe exempts those with 'norm' in their
# name; here that is every norm by type, which also covers those of the stem and the downsampling,
# and the layer scales. Weights and biases of convolutions decay, as they do in Swin's.
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=6e-5, betas=(0.9, 0.999), weight_decay=0.01),
    paramwise_cfg=dict(norm_decay_mult=0.0, custom_keys={'.gamma': dict(decay_mult=0.0)}),
)
