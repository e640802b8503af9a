"""SLaK against recorded outputs and gradients of the authors' networks."""

import pytest
import torch

from mmlk.backbones import SLaK
from mmlk.layers import ConvMlp, LayerNorm2d
from mmlk.networks.blocks import ConvNeXtBlock
from mmlk.ops import LargeKernelDWConv2d
from mmlk.ops.dense import products
from tests.cases import GOLDEN_NETWORK, GOLDEN_OPERATOR, TOLERANCE
from tests.golden_weights import assert_matches, golden_input, load_golden, load_golden_weights

VARIANTS = [
    'slak_tiny',
    'slak_base',
    'slak_tiny_k31',
    'slak_tiny_k7',
    'slak_micro',
    'slak_micro_nodecom',
]
PUBLISHED = {'slak_tiny': 'tiny', 'slak_base': 'base', 'slak_tiny_k31': 'tiny_31'}
# Dense parameters of the headless network with output norms, as the authors' code counts them.
PARAMETERS = {
    'tiny': 49_706_582,
    'small': 90_134_564,
    'base': 156_621_118,
    'tiny_31': 48_584_582,
    'tiny_61': 50_267_582,
}


def recorded_arch(record):
    config = record['config']
    return dict(
        depths=config['depths'],
        dims=record['stage_dims'],
        kernel_sizes=config['kernel_size'][:4],
        small_kernel_size=config['kernel_size'][4],
        decomposed=config['Decom'],
    )


@pytest.mark.parametrize('variant', VARIANTS)
def test_keys_and_shapes_are_the_authors(variant):
    record = load_golden(f'slak/{variant}')
    with torch.device('meta'):
        model = SLaK(PUBLISHED.get(variant, recorded_arch(record)))
    want = {key: shape for key, shape, _, headless in record['state_dict'] if headless}
    want.update({key: shape for key, shape, _ in record['dense_only_state_dict']})
    assert {key: list(value.shape) for key, value in model.state_dict().items()} == want
    assert sum(p.numel() for p in model.parameters()) == record['params_dense_backbone']


@pytest.mark.parametrize('arch', PARAMETERS)
def test_parameters_of_the_published_variants(arch):
    with torch.device('meta'):
        assert sum(p.numel() for p in SLaK(arch).parameters()) == PARAMETERS[arch]


@pytest.mark.parametrize(
    'variant',
    [
        'slak_micro',
        'slak_micro_nodecom',
        *(pytest.param(variant, marks=pytest.mark.slow) for variant in VARIANTS[:4]),
    ],
)
def test_stages_match_the_authors_raw_normed_and_folded(variant):
    record = load_golden(f'slak/{variant}')
    model = load_golden_weights(SLaK(recorded_arch(record), norm_cfg=dict(type='SyncBN'))).eval()
    with torch.no_grad():
        for run in record['runs']:
            x = golden_input(run['input_shape'], run['input_seed'])
            for i, y in enumerate(model(x)):
                assert_matches(f'normed {i}', y, run['dense_outputs_after_norm'][i], GOLDEN_NETWORK)
            model._output_norm = False
            for i, y in enumerate(model(x)):
                assert_matches(f'raw {i}', y, run['stages'][i], GOLDEN_NETWORK)
            model._output_norm = True
        model.switch_to_deploy()
        for run in record['runs']:
            x = golden_input(run['input_shape'], run['input_seed'])
            for i, y in enumerate(model(x)):
                assert_matches(f'folded {i}', y, run['dense_outputs_after_norm'][i], GOLDEN_NETWORK)
    assert not any(isinstance(m, torch.nn.SyncBatchNorm) for m in model.modules())


@pytest.mark.parametrize(
    'case',
    load_golden('slak/operator-block')['cases'],
    ids=lambda case: f'k{case["kernel_size"][0]}-gamma{case["has_gamma"]}',
)
@pytest.mark.parametrize('small_products', ['as for their size', 'as for large ones'])
def test_block_matches_the_authors(case, small_products, monkeypatch):
    memory_format = torch.contiguous_format
    if small_products == 'as for large ones':
        monkeypatch.setattr(products, 'MANY_ROWS', 1)
        monkeypatch.setattr(products, 'MANY_PRODUCTS', 1)
        memory_format = torch.channels_last
    channels, (size, small) = case['dim'], case['kernel_size']
    block = ConvNeXtBlock(
        channels,
        LargeKernelDWConv2d(channels, size, small),
        LayerNorm2d(channels),
        ConvMlp(channels, 4 * channels),
        mixer='large_kernel',
        layer_scale_init=case['layer_scale_init_value'],
    )
    assert [[k, list(v.shape)] for k, v in block.state_dict().items()] == [
        key[:2] for key in case['keys']
    ]
    load_golden_weights(block).eval()
    x = golden_input(case['input_shape']).contiguous(memory_format=memory_format).requires_grad_()
    y = block(x)
    (y * golden_input(y.shape, seed=1)).sum().backward()
    assert_matches('output', y, case['output'], GOLDEN_OPERATOR)
    assert_matches('input gradient', x.grad, case['grad_input'], GOLDEN_OPERATOR)
    for key, summary in case['grad_params'].items():
        assert_matches(key, block.get_parameter(key).grad, summary, GOLDEN_NETWORK)


@pytest.mark.parametrize(
    'case',
    load_golden('slak/operator-layernorm-cf')['cases'],
    ids=lambda case: f'c{case["channels"]}',
)
def test_channels_first_layer_norm_matches_the_authors(case):
    norm = load_golden_weights(LayerNorm2d(case['channels']))
    x = golden_input(case['input_shape']).requires_grad_()
    y = norm(x)
    (y * golden_input(y.shape, seed=1)).sum().backward()
    assert_matches('output', y, case['output'], GOLDEN_OPERATOR, floor=1.0)
    for key, summary in case.get('grad_params', {}).items():
        assert_matches(key, norm.get_parameter(key).grad, summary, TOLERANCE[torch.float32][1])
    for summary in [case['grad_input']] if 'grad_input' in case else []:
        assert_matches('input gradient', x.grad, summary, GOLDEN_OPERATOR)


def test_drop_path_rises_linearly_over_the_blocks():
    with torch.device('meta'):
        model = SLaK('tiny', drop_path_rate=0.4)
    rates = [block.drop_path.rate for stage in model.stages for block in stage]
    assert rates == pytest.approx([0.4 * i / 17 for i in range(18)])


MICRO = dict(depths=(1, 1, 1, 1), dims=(8, 8, 8, 8), kernel_sizes=(13, 11, 9, 7))


@pytest.mark.parametrize(
    ('arch', 'message'),
    [
        (dict(MICRO, kernel_sizes=(14, 11, 9, 7)), 'kernel size 14 must be an odd number'),
        (
            dict(MICRO, kernel_sizes=(201, 11, 9, 7)),
            'kernel size 201 must be an odd number from 1 to 127',
        ),
        (dict(MICRO, small_kernel_size=4), 'kernel size 4 must be an odd number'),
        (dict(MICRO, kernel_sizes=(13, 11, 9)), 'kernel_sizes .* and dims .* differ in length'),
    ],
)
def test_bad_architectures_are_named(arch, message):
    with pytest.raises(ValueError, match=message):
        SLaK(arch)


def test_norms_and_scales_can_be_left_out():
    model = SLaK(dict(MICRO, branch_norm=False), layer_scale_init=None, output_norm=False)
    assert not any(
        'bn' in key or 'gamma' in key or key.startswith('norm') for key in model.state_dict()
    )
    x = torch.randn(1, 3, 40, 33)
    want = model.eval()(x)
    for got, expected in zip(model.switch_to_deploy()(x), want, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4)
