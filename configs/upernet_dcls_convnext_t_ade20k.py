# UperNet on ConvNeXt-T-dcls: 47.1 mIoU single-scale; the authors' README gives 47.1 for multi-scale and
# flip too (run with --tta). 8 GPUs x 2 images, mixed precision, 160,000 iterations. Without a GPU, add
# --cfg-options optim_wrapper.type=OptimWrapper.
_base_ = [
    './_base_/models/upernet.py',
    './_base_/datasets/ade20k.py',
    './_base_/schedules/ade20k_160k.py',
    './_base_/runtime/segmentation.py',
]
checkpoint = 'mmlk://convnext_dcls_tiny_1k_224_ema'

model = dict(
    backbone=dict(
        type='mmlk.DCLSConvNeXt',
        arch='tiny',
        drop_path_rate=0.4,
        layer_scale_init=1.0,
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint),
    ),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
    test_cfg=dict(mode='slide', crop_size=(512, 512), stride=(341, 341)),
)

# Positions and biases do not decay; positions learn at the rate of their stage, as in the authors'
# dense-prediction code. That code has no clamp: it is added, since positions that leave the window
# would be lost.
optim_wrapper = dict(
    type='AmpOptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    constructor='mmlk.LayerDecayConstructor',
    paramwise_cfg=dict(decay_rate=0.9, decay_type='stage_wise', num_layers=6),
)
default_hooks = dict(dcls_clamp=dict(type='mmlk.DCLSClampHook'))

# The authors' multi-scale test never shrinks the short side below the crop.
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='mmlk.CheckSample'),
    dict(
        type='TestTimeAug',
        transforms=[
            [
                dict(type='ResizeShortestEdge', scale=short_side, max_size=1000000)
                for short_side in (512, 512, 512, 640, 768, 896)
            ],
            [
                dict(type='RandomFlip', prob=0.0, direction='horizontal'),
                dict(type='RandomFlip', prob=1.0, direction='horizontal'),
            ],
            [dict(type='LoadAnnotations', reduce_zero_label=True)],
            [dict(type='PackSegInputs')],
        ],
    ),
]
