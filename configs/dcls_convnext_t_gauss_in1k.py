# ConvNeXt-T-dcls with Gaussian elements, 23 x 23, on ImageNet-1K: no top-1 is stated beside the file.
# 32 GPUs x 128 images, float32, 300 epochs, averaged weights. The drop path rate for these networks was
# not published; it is that of ConvNeXt-T.
# Positions and widths learn five times as fast and do not decay. The authors' code of that time neither
# clamps positions nor makes elements repel; positions are kept in the window here all the same.
_base_ = [
    './_base_/models/image_classifier.py',
    './_base_/datasets/imagenet.py',
    './_base_/schedules/imagenet_300e.py',
    './_base_/runtime/classification.py',
]

model = dict(
    backbone=dict(type='mmlk.DCLSConvNeXt', arch='tiny_gauss', drop_path_rate=0.1),
    head=dict(type='mmlk.NormLinearClsHead', in_channels=768),
)
optim_wrapper = dict(paramwise_cfg=dict(lr_multipliers={'.P': 5.0, '.SIG': 5.0}))
custom_hooks = [
    dict(type='EMAHook', momentum=1e-4, priority='ABOVE_NORMAL'),
]
default_hooks = dict(dcls_clamp=dict(type='mmlk.DCLSClampHook'))
