# The ablation of InceptionNeXt-T's token mixer (paper, Table 8): branches, length of the bands, share of
# the channels in a branch, norm. The table gives 4.2G multiply-adds in every row; of its parameters only
# the baseline's are compared here. What becomes of the channels of a branch that is left out, the
# paper does not say: here they pass unchanged.
base = 'mmlk::inceptionnext_t_in1k'
cfg_options = {
    'model.backbone.type': 'mmlk.MetaNeXt',
    'model.backbone.arch': 'inceptionnext_tiny',
}


def mixer(**options):
    return {'model.backbone.token_mixer': dict(type='mmlk.InceptionDWConv2d', **options)}


axes = [
    dict(
        values=[
            ('baseline', mixer()),
            ('no_horizontal', mixer(branches=('square', 'vertical'))),
            ('no_vertical', mixer(branches=('square', 'horizontal'))),
            ('no_square', mixer(branches=('horizontal', 'vertical'))),
            ('band7', mixer(band_kernel_size=7)),
            ('band9', mixer(band_kernel_size=9)),
            ('band13', mixer(band_kernel_size=13)),
            ('ratio4', mixer(branch_ratio=1 / 4)),
            ('ratio16', mixer(branch_ratio=1 / 16)),
            ('layer_norm', {'model.backbone.norm_cfg': dict(type='LN2d')}),
        ]
    )
]
source = 'InceptionNeXt, arXiv 2303.16900v3, Tables 4 and 8'
published = dict(
    baseline=dict(parameters=28e6, macs=4.2e9, metric=82.3),
    no_horizontal=dict(macs=4.2e9, metric=81.9),
    no_vertical=dict(macs=4.2e9, metric=81.9),
    no_square=dict(macs=4.2e9, metric=82.0),
    band7=dict(macs=4.2e9, metric=82.1),
    band9=dict(macs=4.2e9, metric=82.1),
    band13=dict(macs=4.2e9, metric=82.0),
    ratio4=dict(macs=4.2e9, metric=82.2),
    ratio16=dict(macs=4.2e9, metric=81.8),
    layer_norm=dict(macs=4.2e9, metric=82.4),
)
