# Minutes on two CPU cores: 6 epochs of the generated scenes, warm-up over 50 iterations, linear
# decay. The last two epochs are evaluated.
max_epochs = 6
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-3, begin=0, end=50, by_epoch=False),
    dict(
        type='PolyLR',
        power=1.0,
        eta_min=0.0,
        begin=0,
        end=max_epochs,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(
    type='EpochBasedTrainLoop', max_epochs=max_epochs, val_begin=max_epochs - 1, val_interval=1
)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')

# One process x 4 images.
auto_scale_lr = dict(enable=False, base_batch_size=4)
