# 80,000 iterations with polynomial decay of power 0.9 to 1e-6 and no warm-up. MMEngine's schedulers
# arrive one step before `end`, hence the + 1. The config sets the optimizer.
max_iters = 80000
param_scheduler = [
    dict(type='PolyLR', power=0.9, eta_min=1e-6, begin=0, end=max_iters + 1, by_epoch=False),
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=8000)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

# 8 GPUs x 4 images, unless the config says otherwise.
auto_scale_lr = dict(enable=False, base_batch_size=32)
