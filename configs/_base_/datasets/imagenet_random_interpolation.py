# As imagenet.py, with crops resized by bilinear or bicubic interpolation at random, which is the
# default of the trainer that InceptionNeXt's authors used.
_base_ = './imagenet.py'
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='RandomChoice',
        transforms=[
            [dict(type='RandomResizedCrop', scale=224, backend='pillow', interpolation=kind)]
            for kind in ('bilinear', 'bicubic')
        ],
    ),
    *_base_.train_pipeline[2:],
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
