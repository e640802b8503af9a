# UperNet on SLaK-T: 47.6 mIoU, single-scale without flip (authors' README; no multi-scale figure).
# 4 GPUs x 4 images, float32, 160,000 iterations (authors' segmentation configs).
_base_ = [
    './_base_/models/upernet.py',
    './_base_/datasets/ade20k.py',
    './_base_/schedules/ade20k_160k.py',
    './_base_/runtime/segmentation.py',
]
# ImageNet-1K, 300 epochs, 40 % sparse.
checkpoint = 'mmlk://slak_tiny'

model = dict(
    backbone=dict(
        type='mmlk.SLaK',
        arch='tiny',
        drop_path_rate=0.4,
        layer_scale_init=1.0,
        norm_cfg=dict(type='SyncBN'),
        init_cfg=dict(type='Pretrained', checkpoint=checkpoint),
    ),
    decode_head=dict(in_channels=[124, 249, 499, 998]),
    auxiliary_head=dict(in_channels=499),
    test_cfg=dict(mode='slide', crop_size=(512, 512), stride=(341, 341)),
)
train_dataloader = dict(batch_size=4)

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    constructor='mmlk.LayerDecayConstructor',
    paramwise_cfg=dict(decay_rate=0.9, decay_type='stage_wise', num_layers=6),
)
# Weights that are zero in the checkpoint stay zero. The authors mask at the start of each forward
# pass; here it is after each step, so that saved weights are as sparse as those that were tested.
default_hooks = dict(
    sparse_mask=dict(type='mmlk.SparseMaskHook', init='from_weights', update_interval=0)
)
train_cfg = dict(val_interval=4000)
