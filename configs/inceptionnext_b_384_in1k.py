# InceptionNeXt-B fine-tuned at 384 x 384 on ImageNet-1K: top-1 85.2 (paper, Table 4; timm measures
# 85.202 with its copy of the file). 8 GPUs x 32 images x 4 accumulated steps, float32, 30 epochs from
# the file of 224 x 224, averaged weights (paper, Table 9).
# The authors' script differs: no Mixup and no CutMix, and a constant rate where the paper has a cosine.
_base_ = [
    './_base_/models/image_classifier.py',
    './_base_/datasets/imagenet_random_interpolation.py',
    './_base_/schedules/imagenet_300e_by_epoch.py',
    './_base_/runtime/classification.py',
]
max_epochs = 30
accumulative_counts = 4
model = dict(
    backbone=dict(type='mmlk.InceptionNeXt', arch='base', drop_path_rate=0.7),
    head=dict(type='mmlk.MlpClsHead', in_channels=1024, dropout=0.5),
)
load_from = 'mmlk://inceptionnext_base'

# The whole image, without a margin.
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='RandomChoice',
        transforms=[
            [dict(type='RandomResizedCrop', scale=384, backend='pillow', interpolation=kind)]
            for kind in ('bilinear', 'bicubic')
        ],
    ),
    *_base_.train_pipeline[2:],
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=384, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=384),
    dict(type='PackInputs'),
]
train_dataloader = dict(batch_size=32, dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(batch_size=32, dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

optim_wrapper = dict(accumulative_counts=accumulative_counts, optimizer=dict(lr=5e-5))
param_scheduler = [
    dict(type='CosineAnnealingLR', T_max=max_epochs, eta_min=1e-5, begin=0, end=max_epochs + 1)
]
train_cfg = dict(max_epochs=max_epochs)
auto_scale_lr = dict(base_batch_size=1024)
custom_hooks = [
    dict(
        type='EMAHook',
        momentum=1e-4,
        interval=accumulative_counts,
        update_buffers=True,
        priority='ABOVE_NORMAL',
    )
]
