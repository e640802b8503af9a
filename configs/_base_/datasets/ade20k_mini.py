# Generated scenes in the layout of ADE20K (tools/generate_data.py), at their own size of about 200x288.
_base_ = './ade20k.py'
data_root = '{{$MMLK_MINI_ROOT:data/mini}}'
crop_size = (128, 128)
# The scenes show these of the 150 classes; a head for them alone makes the loss eight times cheaper.
metainfo = dict(
    classes=(
        'wall',
        'building',
        'sky',
        'floor',
        'tree',
        'road',
        'grass',
        'sidewalk',
        'person',
        'door',
        'table',
        'mountain',
        'car',
        'water',
        'painting',
        'fence',
        'column',
        'signboard',
        'streetlight',
        'ball',
    )
)

train_pipeline = [
    dict(type='mmlk.CheckSample'),
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='RandomResize', scale=(288, 200), ratio_range=(0.75, 1.25), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='mmlk.CheckSample'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
tta_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='mmlk.CheckSample'),
    dict(
        type='TestTimeAug',
        transforms=[
            [
                dict(type='Resize', scale_factor=factor, keep_ratio=True)
                for factor in (0.75, 1.0, 1.25)
            ],
            [
                dict(type='RandomFlip', prob=0.0, direction='horizontal'),
                dict(type='RandomFlip', prob=1.0, direction='horizontal'),
            ],
            [dict(type='LoadAnnotations')],
            [dict(type='PackSegInputs')],
        ],
    ),
]

train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=train_pipeline),
)
val_dataloader = dict(
    num_workers=1, dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=test_pipeline)
)
test_dataloader = dict(
    num_workers=1, dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=test_pipeline)
)
