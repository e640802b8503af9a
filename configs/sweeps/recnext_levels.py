# RecNeXt-M1 with fewer levels of recursion: at most 0 (one plain 5x5) to 4 (as published) in a stage,
# 120 epochs. Published are the multiply-adds of M1 itself alone.
base = 'mmlk::recnext_m1_without_distill_in1k'
cfg_options = {
    'model.backbone.type': 'mmlk.MetaNeXt',
    'model.backbone.arch': 'recnext_m1',
    'train_cfg.max_epochs': 120,
    'param_scheduler.1.T_max': 120,
    'param_scheduler.1.end': 121,
}


def at_most(levels):
    return [
        dict(type='mmlk.RecConv2d', level=min(level, levels))
        if levels
        else dict(type='mmlk.DepthwiseConv2d', kernel_size=5, bias=False)
        for level in (4, 3, 2, 1)
    ]


axes = [
    dict(
        key='model.backbone.token_mixer',
        values=[
            ('levels0', at_most(0)),
            ('levels1', at_most(1)),
            ('levels2', at_most(2)),
            ('levels3', at_most(3)),
            ('levels4', at_most(4)),
        ],
    )
]
source = "authors' README (suous/RecNeXt)"
published = dict(levels4=dict(macs=0.9e9))
