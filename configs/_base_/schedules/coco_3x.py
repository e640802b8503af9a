# 36 epochs: linear warm-up over 500 iterations from 1e-3 of the rate, a tenth of it after epochs 27
# and 33. MMEngine's warm-up arrives one step before `end`, hence the + 1, and MMCV 1.x's did not.
# The config sets the optimizer.
max_epochs = 36
warmup_iters = 500
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, begin=0, end=warmup_iters + 1, by_epoch=False),
    dict(
        type='MultiStepLR', milestones=[27, 33], gamma=0.1, begin=0, end=max_epochs, by_epoch=True
    ),
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=max_epochs, val_interval=1)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

# 8 GPUs x 2 images, unless the config says otherwise.
auto_scale_lr = dict(enable=False, base_batch_size=16)
