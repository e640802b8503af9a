# 300 epochs of AdamW: warm-up from 1e-6 over 20 epochs times half a cosine to 1e-5 that starts at
# epoch 0, set once per epoch, as by timm's trainer, which InceptionNeXt's and RecNeXt's authors use.
# timm does not multiply the two: within the warm-up this is below the authors' rate by at most 1.1 %
# of the peak, afterwards they are equal.
_base_ = './imagenet_300e.py'
param_scheduler = [
    dict(type='LinearLR', start_factor=2.5e-4, begin=0, end=21),
    dict(type='CosineAnnealingLR', T_max=300, eta_min=1e-5, begin=0, end=301),
]
