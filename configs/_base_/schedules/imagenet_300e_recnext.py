# RecNeXt's: 300 epochs of AdamW at 1e-3 for 512 images, warm-up from 1e-6 over 5 epochs, half a cosine
# to 1e-5, float16 with adaptive gradient clipping (the norm of a unit's gradient stays below 0.02 of its
# weights'). The authors' loop sets the rate after an epoch, so theirs follows this curve one epoch
# later. They average weights (decay 0.99996), but neither evaluate nor publish the average.
_base_ = './imagenet_300e_by_epoch.py'
optim_wrapper = dict(
    type='AmpOptimWrapper',
    loss_scale='dynamic',
    optimizer=dict(lr=2e-3, weight_decay=0.025),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=5e-4, begin=0, end=6),
    dict(type='CosineAnnealingLR', T_max=300, eta_min=1e-5, begin=0, end=301),
]
custom_hooks = [dict(type='mmlk.AdaptiveClipHook', clip_factor=0.02)]
auto_scale_lr = dict(base_batch_size=1024)
