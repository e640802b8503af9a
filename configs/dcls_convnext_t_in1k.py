# ConvNeXt-T-dcls on ImageNet-1K: top-1 82.5 (authors' README).
# 32 GPUs x 128 images, float32, 300 epochs, averaged weights. The drop path rate for these networks was
# not published; it is that of ConvNeXt-T.
# Positions learn five times as fast, do not decay, are kept in the window after every iteration,
# and repel from epoch 21 on: the squared overlap is added to the loss.
_base_ = [
    './_base_/models/image_classifier.py',
    './_base_/datasets/imagenet.py',
    './_base_/schedules/imagenet_300e.py',
    './_base_/runtime/classification.py',
]

model = dict(
    backbone=dict(type='mmlk.DCLSConvNeXt', arch='tiny', drop_path_rate=0.1),
    head=dict(type='mmlk.NormLinearClsHead', in_channels=768),
)
optim_wrapper = dict(paramwise_cfg=dict(lr_multipliers={'.P': 5.0}))
custom_hooks = [
    dict(type='EMAHook', momentum=1e-4, priority='ABOVE_NORMAL'),
    dict(type='mmlk.DCLSRepulsionHook', weight=1.0, begin=21),
]
default_hooks = dict(dcls_clamp=dict(type='mmlk.DCLSClampHook'))
