"""Optimizer groups against those of the authors' constructors, and for every backbone."""

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from torch import nn

import mmlk.backbones  # noqa: F401  (fills the registry)
from mmlk.backbones import SLaK
from mmlk.registry import MODELS
from tests.cases import MICRO_ARCHS
from tests.golden_weights import load_golden

GOLDEN = load_golden('slak/lr-groups')['cases']


class Segmentor(nn.Module):
    """A backbone and a head, in the places where OpenMMLab models have them."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone
        self.decode_head = nn.Conv2d(8, 8, 1)


def build(model, lr=1e-4, weight_decay=0.05, **paramwise_cfg):
    return build_optim_wrapper(
        model,
        dict(
            type='OptimWrapper',
            optimizer=dict(type='AdamW', lr=lr, weight_decay=weight_decay),
            constructor='mmlk.LayerDecayConstructor',
            paramwise_cfg=paramwise_cfg,
        ),
    ).optimizer


def settings_by_name(model, optimizer):
    groups = {id(param): group for group in optimizer.param_groups for param in group['params']}
    return {name: groups[id(param)] for name, param in model.named_parameters()}


@pytest.mark.parametrize('case', GOLDEN, ids=lambda case: case['name'])
def test_groups_are_the_authors(case):
    with torch.device('meta'):
        model = Segmentor(SLaK(case['variant'].removeprefix('slak_')))
    optimizer = build(model, case['base_lr'], case['weight_decay'], **case['paramwise_cfg'])
    got = {group['group_name']: group for group in optimizer.param_groups}
    assert set(got) == {group['name'] for group in case['groups']}
    for group in case['groups']:
        mine = got[group['name']]
        assert len(mine['params']) == group['tensors']
        assert mine['lr'] == group['lr'] and mine['lr_scale'] == group['lr_scale']
        assert mine['weight_decay'] == group['weight_decay']
    by_name = settings_by_name(model, optimizer)
    for prefix, scale in case['lr_scale_by_prefix'].items():
        scales = [by_name[name]['lr_scale'] for name in by_name if name.startswith(f'{prefix}.')]
        assert scales == pytest.approx([scale] * len(scales), rel=1e-9) and scales, prefix


@pytest.mark.parametrize('decay_type', ['stage_wise', 'layer_wise'])
@pytest.mark.parametrize('name', sorted(MICRO_ARCHS))
def test_rates_never_fall_from_stem_to_head_of_any_backbone(name, decay_type):
    model = Segmentor(MODELS.build(dict(type=f'mmlk.{name}', arch=MICRO_ARCHS[name])))
    by_name = settings_by_name(model, build(model, decay_rate=0.5, decay_type=decay_type))
    assert by_name.keys() == dict(model.named_parameters()).keys()
    heads = {by_name[key]['lr'] for key in by_name if key.startswith('decode_head.')}
    assert heads == {1e-4}
    blocks = [
        (location.stage, group['lr'])
        for key, group in by_name.items()
        if key.startswith('backbone.')
        and (location := model.backbone.layer_location(key[len('backbone.') :])).kind == 'block'
    ]
    assert [lr for _, lr in sorted(blocks)] == sorted(lr for _, lr in blocks)
    assert max(lr for _, lr in blocks) < 1e-4


def test_backbone_declares_what_does_not_decay_and_what_learns_faster():
    model = Segmentor(SLaK(dict(MICRO_ARCHS['SLaK'])))
    model.backbone.no_weight_decay = ('pwconv1.weight',)
    model.backbone.lr_multipliers = {'.pwconv1.weight': 5, '.bias': 2}
    by_name = settings_by_name(
        model,
        build(
            model,
            decay_rate=0.5,
            decay_type='stage_wise',
            num_layers=6,
            lr_multipliers={'.bias': 1},
        ),
    )
    group = by_name['backbone.stages.3.0.pwconv1.weight']
    assert group['weight_decay'] == 0 and group['lr'] == pytest.approx(5e-4 / 8)
    assert group['group_name'] == 'layer_4_no_decay_x5'
    assert by_name['backbone.stages.3.0.pwconv2.weight']['weight_decay'] == 0.05
    assert by_name['backbone.stages.3.0.pwconv2.bias']['lr'] == pytest.approx(1e-4 / 8)


def test_frozen_parameters_are_left_out_and_a_bare_backbone_works():
    model = SLaK(dict(MICRO_ARCHS['SLaK']), frozen_stages=1)
    names = {group['group_name'] for group in build(model, decay_rate=0.9).param_groups}
    assert 'layer_1_decay' not in names and 'layer_0_decay' not in names
    assert 'layer_2_decay' in names


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(), 'decay_rate None'),
        (dict(decay_rate=1.5), 'decay_rate 1.5'),
        (dict(decay_rate=0.9, decay_type='blockwise'), "decay_type 'blockwise' is not one of"),
        (dict(decay_rate=0.9, layers=6), r"unknown keys \['layers'\]"),
        (dict(decay_rate=0.9, num_layers=3), 'num_layers 3 is below 4'),
        (dict(decay_rate=0.9, decay_type='stage_wise', num_layers=3), 'num_layers 3 is below 4'),
        (dict(decay_rate=0.9, lr=None), 'no lr'),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        build(Segmentor(SLaK(dict(MICRO_ARCHS['SLaK']))), **options)


def test_backbone_without_locations_is_named():
    with pytest.raises(ValueError, match='backbone Linear of Segmentor has no layer_location'):
        build(Segmentor(nn.Linear(2, 2)), decay_rate=0.9)
