# Semantic FPN on SLaK-T: no published reference. The authors trained UperNet only; the recipe is the
# Semantic FPN one of PoolFormer and InceptionNeXt, with the fixed masks of SLaK's UperNet configs.
# 8 GPUs x 4 images, float32, 40,000 iterations.
_base_ = [
    './_base_/models/semantic_fpn.py',
    './_base_/datasets/ade20k_multiple32.py',
    './_base_/schedules/ade20k_40k.py',
    './_base_/runtime/segmentation.py',
]
# ImageNet-1K, 300 epochs, 40 % sparse.
checkpoint = 'mmlk://slak_tiny'

model = dict(
    backbone=dict(
        type='mmlk.SLaK',
        arch='tiny',
        drop_path_rate=0.1,
        layer_scale_init=1.0,
        norm_cfg=dict(type='SyncBN'),
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint),
    ),
    neck=dict(in_channels=[124, 249, 499, 998]),
)
train_dataloader = dict(batch_size=4)

# PoolFormer's recipe sets nothing per parameter: every parameter decays.
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=2e-4, weight_decay=1e-4))
default_hooks = dict(
    sparse_mask=dict(type='mmlk.SparseMaskHook', init='from_weights', update_interval=0),
    checkpoint=dict(interval=4000),
)
