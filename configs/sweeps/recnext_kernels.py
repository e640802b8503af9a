# RecNeXt-M1 with plain and recursive convolutions of several sizes, 120 epochs at 224 (authors' logs).
# Recursion has the published levels 4, 3, 2, 1. The authors' command was not published: this is the
# recipe of 300 epochs without a teacher, shortened.
base = 'mmlk::recnext_m1_without_distill_in1k'
cfg_options = {
    'model.backbone.type': 'mmlk.MetaNeXt',
    'model.backbone.arch': 'recnext_m1',
    'train_cfg.max_epochs': 120,
    'param_scheduler.1.T_max': 120,
    'param_scheduler.1.end': 121,
}


def recursive(**options):
    return [dict(type='mmlk.RecConv2d', level=level, **options) for level in (4, 3, 2, 1)]


axes = [
    dict(
        key='model.backbone.token_mixer',
        values=[
            ('plain3', dict(type='mmlk.DepthwiseConv2d', kernel_size=3)),
            ('plain7', dict(type='mmlk.DepthwiseConv2d', kernel_size=7)),
            ('recursive3', recursive(kernel_size=3)),
            ('recursive5', recursive(kernel_size=5)),
            ('recursive7', recursive(kernel_size=7)),
            ('recursive7_nearest', recursive(kernel_size=7, mode='nearest')),
        ],
    )
]
source = "authors' logs (suous/RecNeXt, logs/ablation/224): n_parameters and the best epoch"
published = dict(
    plain3=dict(parameters=5_198_984, metric=74.64),
    plain7=dict(parameters=5_362_184, metric=75.52),
    recursive3=dict(parameters=5_303_336, metric=75.48),
    recursive5=dict(parameters=5_561_384, metric=76.03),
    recursive7=dict(parameters=5_948_456, metric=75.67),
    recursive7_nearest=dict(parameters=5_948_456, metric=75.71),
)
