# ImageClassifier on the last map of a backbone, which keeps no output norms; the config names both.
model = dict(
    type='ImageClassifier',
    backbone=dict(out_indices=(3,), output_norm=False),
    head=dict(
        num_classes=1000,
        loss=dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='original'),
    ),
    # One of the two for every batch, with equal chance.
    train_cfg=dict(
        augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)],
    ),
)
