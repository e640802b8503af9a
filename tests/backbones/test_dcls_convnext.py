"""DCLS-ConvNeXt against recorded outputs of the authors' network, and the life of shared positions."""

import copy

import pytest
import torch
from mmengine.model import ExponentialMovingAverage
from mmengine.optim import build_optim_wrapper

from mmlk.backbones import DCLSConvNeXt
from mmlk.ops import DepthwiseConv2d
from tests.cases import GOLDEN_NETWORK, MICRO_ARCHS, TOLERANCE, assert_close
from tests.golden_weights import golden_input, load_golden, load_golden_weights, sampled

MICRO = MICRO_ARCHS['DCLSConvNeXt']
RECORDS = ['tiny', 'tiny-unshared', 'base']


def micro(**options):
    return DCLSConvNeXt(arch=MICRO, **options)


def golden_model(record, **options):
    options['share_positions'] = 'unshared' not in record
    return DCLSConvNeXt(record.split('-')[0], **options)


def assert_shared(model):
    """One tensor per stage, and different ones for different stages."""
    tensors = [{id(block.dwconv.P) for block in stage} for stage in model.stages]
    assert [len(each) for each in tensors] == [1] * len(tensors)
    assert len(set.union(*tensors)) == len(tensors)


@pytest.mark.parametrize('record', RECORDS)
def test_keys_shapes_and_parameters_are_the_authors(record):
    golden = load_golden(f'dcls_convnext/{record}')
    with torch.device('meta'):
        model = golden_model(record)
    own = [(key, list(value.shape)) for key, value in model.state_dict().items()]
    trunk = [row[:2] for row in golden['state_dict'] if not row[0].startswith(('norm', 'head'))]
    norms = [
        row[:2]
        for row in golden['state_dict'] + golden.get('dense_only_state_dict', [])
        if row[0][:4] == 'norm' and row[0][4].isdigit()
    ]
    assert [list(each) for each in own if each[0][:4] != 'norm'] == trunk
    assert sorted(list(each) for each in own if each[0][:4] == 'norm') == sorted(norms)
    assert sum(p.numel() for p in model.parameters()) == golden['params_dense']


@pytest.mark.parametrize(
    ('arch', 'parameters'), [('small', 49_449_408), ('tiny_gauss', 27_818_880)]
)
def test_parameters_of_variants_without_a_record(arch, parameters):
    with torch.device('meta'):
        model = DCLSConvNeXt(arch)
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.slow
@pytest.mark.parametrize(
    ('record', 'case'), [('tiny', 0), ('tiny', 1), ('tiny-unshared', 0), ('base', 1)]
)
def test_stages_match_the_authors_raw_normed_and_folded(record, case):
    golden = load_golden(f'dcls_convnext/{record}')['cases'][case]
    x = golden_input(golden['input_shape'], golden['input_seed'])
    raw = load_golden_weights(golden_model(record, output_norm=False)).eval()
    normed = load_golden_weights(golden_model(record)).eval()
    with torch.no_grad():
        results = [
            ('stages', raw(x)),
            ('normed', normed(x)),
            ('stages', raw.switch_to_deploy()(x)),
            ('normed', normed.switch_to_deploy()(x)),
        ]
    for name, outputs in results:
        for i, (y, summary) in enumerate(zip(outputs, golden[name], strict=True)):
            got, want = sampled(y, summary)
            assert (got - want).abs().max() <= GOLDEN_NETWORK * summary['std'], (name, i)


def test_deploy_form_holds_plain_depthwise_convolutions_only():
    model = micro().switch_to_deploy()
    assert not any(key.endswith(('.P', '.SIG', 'gamma')) for key in model.state_dict())
    assert all(
        isinstance(block.dwconv, DepthwiseConv2d) for stage in model.stages for block in stage
    )


@pytest.mark.parametrize('version', ['v0', 'gauss'])
def test_state_dict_repeats_the_positions_under_the_authors_keys(version):
    model = DCLSConvNeXt(arch={**MICRO, 'version': version})
    assert_shared(model)
    state = model.state_dict()
    names = ('P', 'SIG') if version == 'gauss' else ('P',)
    for name in names:
        copies = [state[f'stages.2.{j}.dwconv.{name}'] for j in range(3)]
        assert all(torch.equal(each, copies[0]) for each in copies)
    listed = [name for name, _ in model.named_parameters() if name.endswith(names)]
    assert listed == [f'stages.{i}.0.dwconv.{name}' for i in range(4) for name in names]


@pytest.mark.parametrize('assign', [False, True])
def test_loading_keeps_the_sharing(assign):
    source, model = micro(), micro()
    state = source.state_dict()
    assert model.load_state_dict(state, strict=True, assign=assign) == ([], [])
    assert_shared(model)
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), key


def test_one_key_per_stage_is_enough():
    source, model = micro(), micro()
    state = {
        key: value
        for key, value in source.state_dict().items()
        if not key.endswith('dwconv.P') or '.1.dwconv' in key or '.0.dwconv' in key
    }
    del state['stages.2.0.dwconv.P']
    model.load_state_dict(state, strict=True)
    assert_shared(model)
    assert torch.equal(model.stages[2][0].dwconv.P, source.stages[2][0].dwconv.P)


def test_deepcopy_and_safetensors_keep_the_sharing(tmp_path):
    safetensors = pytest.importorskip('safetensors.torch')
    source, model = micro(), micro()
    assert_shared(copy.deepcopy(source))
    safetensors.save_file(source.state_dict(), tmp_path / 'plain.safetensors')
    model.load_state_dict(safetensors.load_file(tmp_path / 'plain.safetensors'), strict=True)
    assert_shared(model)
    safetensors.save_model(source, str(tmp_path / 'model.safetensors'))
    safetensors.load_model(model, str(tmp_path / 'model.safetensors'))
    assert_shared(model)
    assert torch.equal(model.stages[2][1].dwconv.P, source.stages[2][1].dwconv.P)


@pytest.mark.parametrize('update_buffers', [False, True])
def test_moving_average_counts_shared_positions_once(update_buffers):
    model = micro()
    average = ExponentialMovingAverage(model, momentum=0.5, update_buffers=update_buffers)
    average.update_parameters(model)
    before = model.stages[2][0].dwconv.P.detach().clone()
    with torch.no_grad():
        model.stages[2][0].dwconv.P.add_(1)
    average.update_parameters(model)
    assert_shared(average.module)
    assert_close(
        'average', average.module.stages[2][2].dwconv.P, before + 0.5, TOLERANCE[torch.float32][0]
    )


@pytest.mark.parametrize(
    'paramwise',
    [None, dict(norm_decay_mult=0.0), dict(custom_keys={'.P': dict(decay_mult=0.0, lr_mult=5.0)})],
    ids=['plain', 'norms', 'custom'],
)
def test_optimizer_constructors_meet_shared_positions_once(paramwise):
    model = micro()
    wrapper = build_optim_wrapper(
        model,
        dict(
            type='OptimWrapper',
            optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
            paramwise_cfg=paramwise,
        ),
    )
    listed = [id(p) for group in wrapper.optimizer.param_groups for p in group['params']]
    assert len(listed) == len(set(listed)) == len(list(model.parameters()))


def test_optimizer_state_and_positions_survive_a_training_step():
    model = micro()
    optimizer = torch.optim.SGD(model.parameters(), lr=100.0)
    before = [stage[0].dwconv.P.detach().clone() for stage in model.stages]
    sum(y.square().sum() for y in model(torch.randn(2, 3, 64, 64))).backward()
    optimizer.step()
    model.clamp_parameters()
    assert_shared(model)
    for stage, old in zip(model.stages, before, strict=True):
        assert not torch.equal(stage[0].dwconv.P, old)
        assert stage[0].dwconv.P.abs().max() <= 4


def test_unshared_positions_are_parameters_of_each_block():
    model = micro(share_positions=False)
    assert sum(name.endswith('.P') for name, _ in model.named_parameters()) == 7
    assert model.stages[0][0].dwconv.P is not model.stages[0][1].dwconv.P


def test_only_channel_norms_are_accepted():
    micro(norm_cfg=dict(type='LN2d'))
    with pytest.raises(ValueError, match="norm_cfg {'type': 'BN'} must be"):
        micro(norm_cfg=dict(type='BN'))


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (dict(version='v3'), "version 'v3' is not one of"),
        (dict(kernel_size=8), 'must be odd'),
        (dict(kernel_count=0), 'kernel_count 0 must be at least 1'),
    ],
)
def test_bad_kernel_settings_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        DCLSConvNeXt(arch={**MICRO, **change})


def published(tmp_path, change=None):
    """A classifier file as the authors wrap it, with positions beyond the window."""
    state = DCLSConvNeXt(arch=MICRO, output_norm=False).state_dict()
    state = {key: value * 20 if key.endswith('.P') else value for key, value in state.items()}
    state.update(
        {
            'norm.weight': torch.ones(40),
            'norm.bias': torch.zeros(40),
            'head.weight': torch.zeros(9, 40),
            'head.bias': torch.zeros(9),
            'stages.0.0.dwconv.DCK.lim': torch.zeros(2),
        }
    )
    state.update(change or {})
    torch.save({'model': state}, tmp_path / 'file.pth')
    return state, dict(type='Pretrained', checkpoint=str(tmp_path / 'file.pth'))


def test_published_files_load_with_positions_clamped_to_the_window(tmp_path):
    state, init_cfg = published(tmp_path)
    model = micro(init_cfg=init_cfg)
    model.init_weights()
    assert_shared(model)
    for i, stage in enumerate(model.stages):
        want = state[f'stages.{i}.0.dwconv.P']
        assert want.abs().max() > 4
        assert torch.equal(stage[0].dwconv.P, want.clamp(-4, 4))
    assert torch.equal(model.stages[2][2].pwconv1.weight, state['stages.2.2.pwconv1.weight'])
    assert torch.equal(model.norm3.weight, torch.ones(40)), 'output norms start afresh'


def test_published_files_with_positions_per_block_are_refused(tmp_path):
    _, init_cfg = published(tmp_path, {'stages.2.1.dwconv.P': torch.zeros(2, 32, 1, 5)})
    model = micro(init_cfg=init_cfg)
    with pytest.raises(ValueError, match='stages.2.1.dwconv.P differs.*without sharing'):
        model.init_weights()
    micro(init_cfg=init_cfg, share_positions=False).init_weights()
