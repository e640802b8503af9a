# 300 epochs of AdamW: linear warm-up over 20 epochs, then half a cosine to 1e-6, iteration by iteration,
# as ConvNeXt's trainer does it, which SLaK's and DCLS-ConvNeXt's authors use. One-dimensional
# parameters and biases do not decay.
max_epochs = 300
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=4e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05),
    constructor='mmlk.LayerDecayConstructor',
    paramwise_cfg=dict(decay_rate=1.0, decay_type='stage_wise'),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, begin=0, end=20, convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        eta_min_ratio=2.5e-4,
        begin=20,
        end=max_epochs,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(by_epoch=True, max_epochs=max_epochs, val_interval=1)
val_cfg = dict()
test_cfg = dict()

# Unless the config says otherwise.
auto_scale_lr = dict(enable=False, base_batch_size=4096)
