# Minutes on two CPU cores: 650 iterations, warm-up over 50, polynomial decay.
max_iters = 650
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, begin=0, end=50, by_epoch=False),
    dict(type='PolyLR', power=1.0, eta_min=0.0, begin=0, end=max_iters + 1, by_epoch=False),
]
train_cfg = dict(type='IterBasedTrainLoop', max_iters=max_iters, val_interval=max_iters)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

# One process x 8 images.
auto_scale_lr = dict(enable=False, base_batch_size=8)
