"""Heads of checkpoints written by mmseg 0.x and mmdet 2.x keep their names in today's packages.

The names are those that the 0.x / 2.x code gave its modules; a whole published dense model
therefore loads with its ``neck.`` and ``*_head.`` keys as they are, and only ``backbone.`` needs a
map.
"""

from __future__ import annotations

import pytest
from mmengine.registry import init_default_scope

BN = ('weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked')
SYNC = dict(type='SyncBN')


def conv_bn(*places: str) -> set[str]:
    return {
        key
        for place in places
        for key in (f'{place}.conv.weight', *(f'{place}.bn.{name}' for name in BN))
    }


def biased(*places: str) -> set[str]:
    return {f'{place}.{name}' for place in places for name in ('weight', 'bias')}


def fpn() -> set[str]:
    kinds = ('lateral_convs', 'fpn_convs')
    return biased(*(f'{kind}.{i}.conv' for kind in kinds for i in range(4)))


@pytest.mark.slow
def test_segmentation_heads():
    heads = pytest.importorskip('mmseg.models.decode_heads')
    necks = pytest.importorskip('mmseg.models.necks')
    common = dict(channels=8, num_classes=150, norm_cfg=SYNC)
    levels = dict(in_channels=[8] * 4, in_index=[0, 1, 2, 3])
    found = heads.FPNHead(feature_strides=[4, 8, 16, 32], **levels, **common).state_dict()
    assert set(found) == biased('conv_seg') | conv_bn(
        'scale_heads.0.0',
        'scale_heads.1.0',
        'scale_heads.2.0',
        'scale_heads.2.2',
        'scale_heads.3.0',
        'scale_heads.3.2',
        'scale_heads.3.4',
    )
    found = heads.UPerHead(pool_scales=(1, 2, 3, 6), **levels, **common).state_dict()
    assert set(found) == biased('conv_seg') | conv_bn(
        'bottleneck',
        'fpn_bottleneck',
        *(f'psp_modules.{i}.1' for i in range(4)),
        *(f'{kind}.{i}' for kind in ('lateral_convs', 'fpn_convs') for i in range(3)),
    )
    found = heads.FCNHead(in_channels=8, num_convs=1, concat_input=False, **common).state_dict()
    assert set(found) == biased('conv_seg') | conv_bn('convs.0')
    assert set(necks.FPN([8] * 4, 8, 4).state_dict()) == fpn()


@pytest.mark.slow
def test_detection_heads():
    models = pytest.importorskip('mmdet.models')
    init_default_scope('mmdet')
    assert set(models.FPN([8] * 4, 8, 5).state_dict()) == fpn()
    rpn = models.RPNHead(in_channels=8)
    assert set(rpn.state_dict()) == biased('rpn_conv', 'rpn_cls', 'rpn_reg')
    box = models.Shared2FCBBoxHead(in_channels=8, fc_out_channels=8, num_classes=80)
    assert set(box.state_dict()) == biased('fc_cls', 'fc_reg', 'shared_fcs.0', 'shared_fcs.1')
    cascade = models.ConvFCBBoxHead(
        num_shared_convs=4,
        num_shared_fcs=1,
        in_channels=8,
        conv_out_channels=8,
        fc_out_channels=8,
        num_classes=80,
        norm_cfg=SYNC,
    )
    assert set(cascade.state_dict()) == biased('fc_cls', 'fc_reg', 'shared_fcs.0') | conv_bn(
        *(f'shared_convs.{i}' for i in range(4))
    )
    mask = models.FCNMaskHead(in_channels=8, conv_out_channels=8, num_classes=80)
    assert set(mask.state_dict()) == biased(
        'upsample', 'conv_logits', *(f'convs.{i}.conv' for i in range(4))
    )
