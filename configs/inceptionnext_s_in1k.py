# InceptionNeXt-S on ImageNet-1K: top-1 83.5 (paper, Table 4;
# timm measures 83.584 with its copy of the file).
# 8 GPUs x 128 images x 4 accumulated steps, float32, 300 epochs, no weight averaging (paper, Table 9).
# The authors' script stays at the last rate for 10 more epochs, which the paper does not mention.
_base_ = [
    './_base_/models/image_classifier.py',
    './_base_/datasets/imagenet_random_interpolation.py',
    './_base_/schedules/imagenet_300e_by_epoch.py',
    './_base_/runtime/classification.py',
]

model = dict(
    backbone=dict(type='mmlk.InceptionNeXt', arch='small', drop_path_rate=0.3),
    head=dict(type='mmlk.MlpClsHead', in_channels=768),
)
optim_wrapper = dict(accumulative_counts=4)
