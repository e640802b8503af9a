# InceptionNeXt-A, from scratch on generated pictures of eight classes: no published reference.
# 1 process x 32 images, float32, 6 epochs, minutes on two CPU cores.
_base_ = [
    './_base_/models/image_classifier.py',
    './_base_/datasets/classes_mini.py',
    './_base_/runtime/classification.py',
]
max_epochs = 6
model = dict(
    # Within minutes the blocks have to learn from the start.
    backbone=dict(type='mmlk.InceptionNeXt', arch='atto', layer_scale_init=1.0),
    head=dict(type='mmlk.MlpClsHead', in_channels=320, num_classes=8),
    train_cfg=None,
)

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
    constructor='mmlk.LayerDecayConstructor',
    paramwise_cfg=dict(decay_rate=1.0, decay_type='stage_wise'),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, begin=0, end=1, convert_to_iter_based=True),
    dict(type='CosineAnnealingLR', begin=1, end=max_epochs, convert_to_iter_based=True),
]
train_cfg = dict(by_epoch=True, max_epochs=max_epochs, val_interval=1)
val_cfg = dict()
test_cfg = dict()
default_hooks = dict(logger=dict(interval=10))
# One process x 32 images.
auto_scale_lr = dict(enable=False, base_batch_size=32)
