# 160,000 iterations: linear warm-up over 1,500 from 1e-6 of the rate, times a linear decay to 0 that
# starts at iteration 0, as MMCV 1.x computed it. MMEngine's schedulers arrive one step before `end`,
# hence the + 1. The config sets the optimizer.
max_iters = 160000
warmup_iters = 1500
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, begin=0, end=warmup_iters + 1, by_epoch=False),
    dict(type='PolyLR', power=1.0, eta_min=0.0, begin=0, end=max_iters + 1, by_epoch=False),
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=8000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

# 8 GPUs x 2 images, unless the config says otherwise.
auto_scale_lr = dict(enable=False, base_batch_size=16)
