# Generated scenes in the layout of COCO (tools/generate_data.py), shrunk from about 200x288 to
# 133x192, which is what minutes on a CPU allow; predictions are compared at the original size. They
# show 5 of the 80 categories, listed in the order of the annotation file.
_base_ = './coco_instance.py'
data_root = '{{$MMLK_MINI_ROOT:data/mini}}'
scale = 2 / 3
metainfo = dict(classes=('person', 'car', 'stop sign', 'sports ball', 'dining table'))

train_pipeline = [
    dict(type='mmlk.CheckSample'),
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale_factor=scale, keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='mmlk.CheckSample'),
    dict(type='Resize', scale_factor=scale, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]

train_dataloader = dict(
    batch_size=4,
    num_workers=1,
    dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=train_pipeline),
)
val_dataloader = dict(
    num_workers=1, dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=test_pipeline)
)
test_dataloader = dict(
    num_workers=1, dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=test_pipeline)
)
val_evaluator = dict(ann_file=f'{data_root}/annotations/instances_val2017.json')
test_evaluator = dict(ann_file=f'{data_root}/annotations/instances_val2017.json')
