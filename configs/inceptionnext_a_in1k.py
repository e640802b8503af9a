# InceptionNeXt-A on ImageNet-1K: top-1 75.3 (paper, Table 4; timm measures 75.348 with its copy of the
# file). 4 GPUs x 320 images, float32, 450 epochs (paper, Table 9).
# The authors' script differs: 600 epochs, and rates that start and end at 5e-7 instead of 1e-6 and 1e-5,
# on which the paper is silent; those two are the script's here. Milder augmentation than for T, S, B:
# magnitudes uniform in 0..5, Mixup 0.2, erasing 0.1.
_base_ = [
    './_base_/models/image_classifier.py',
    './_base_/datasets/imagenet_random_interpolation.py',
    './_base_/schedules/imagenet_300e_by_epoch.py',
    './_base_/runtime/classification.py',
]
max_epochs = 450
model = dict(
    backbone=dict(type='mmlk.InceptionNeXt', arch='atto', drop_path_rate=0.1),
    head=dict(type='mmlk.MlpClsHead', in_channels=320),
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.2), dict(type='CutMix', alpha=1.0)]),
)

train_pipeline = [
    *_base_.train_pipeline[:3],
    dict(_base_.train_pipeline[3], magnitude_level=5, magnitude_std='inf'),
    dict(_base_.train_pipeline[4], erase_prob=0.1),
    dict(type='PackInputs'),
]
train_dataloader = dict(batch_size=320, dataset=dict(pipeline=train_pipeline))

optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=5e-4, begin=0, end=6),
    dict(type='CosineAnnealingLR', T_max=max_epochs, eta_min=5e-7, begin=0, end=max_epochs + 1),
]
train_cfg = dict(max_epochs=max_epochs)
auto_scale_lr = dict(base_batch_size=1280)
