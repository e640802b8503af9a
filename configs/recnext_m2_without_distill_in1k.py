# RecNeXt-M2 on ImageNet-1K, without a teacher: top-1 79.2
# (authors' README: the best epoch of the trained weights, not of their average). 8 GPUs x 128 images,
# mixed precision, 300 epochs.
_base_ = [
    './_base_/models/image_classifier.py',
    './_base_/datasets/imagenet_repeated.py',
    './_base_/schedules/imagenet_300e_recnext.py',
    './_base_/runtime/classification.py',
]

model = dict(
    backbone=dict(type='mmlk.RecNeXt', arch='m2'),
    head=dict(type='mmlk.TwoBranchClsHead', in_channels=448),
)
