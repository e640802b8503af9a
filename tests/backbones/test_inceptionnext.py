"""InceptionNeXt against recorded outputs and gradients of the authors' network, and against timm."""

import pytest
import torch
from torch import nn

from mmlk.backbones import InceptionNeXt
from mmlk.layers import ConvMlp
from mmlk.networks.blocks import MetaNeXtBlock
from mmlk.ops import InceptionDWConv2d
from tests.cases import GOLDEN_NETWORK, GOLDEN_OPERATOR, GOLDEN_TRAIN_MODE, TOLERANCE, assert_close
from tests.golden_weights import golden_input, load_golden, load_golden_weights, sampled

VARIANTS = [
    'atto',
    pytest.param('tiny', marks=pytest.mark.slow),
    pytest.param('base', marks=pytest.mark.slow),
]


def assert_matches(name, tensor, summary, tolerance, floor=1e-3):
    got, want = sampled(tensor, summary)
    assert (got - want).abs().max() <= tolerance * max(summary['std'], floor), name


def golden_model(variant, **options):
    return load_golden_weights(InceptionNeXt(variant, **options))


@pytest.mark.parametrize('variant', ['atto', 'tiny', 'base'])
def test_keys_shapes_and_parameters_are_the_authors(variant):
    record = load_golden(f'inceptionnext/{variant}')
    with torch.device('meta'):
        model = InceptionNeXt(variant, output_norm=False)
    want = [(key, shape) for key, shape, _, headless in record['state_dict'] if headless]
    assert [(k, list(v.shape)) for k, v in model.state_dict().items()] == want
    assert sum(p.numel() for p in model.parameters()) == record['params_headless']


def test_parameters_of_the_small_variant():
    with torch.device('meta'):
        model = InceptionNeXt('small', output_norm=False)
    assert sum(p.numel() for p in model.parameters()) == 45_292_632


@pytest.mark.parametrize('variant', VARIANTS)
@pytest.mark.parametrize('case', [0, 1], ids=['64x64', '97x131'])
def test_stages_match_the_authors_raw_normed_and_folded(variant, case):
    record = load_golden(f'inceptionnext/{variant}')['cases'][case]
    x = golden_input(record['input']['shape'], record['input']['seed'])
    raw = golden_model(variant, output_norm=False).eval()
    with torch.no_grad():
        for i, (y, summary) in enumerate(zip(raw(x), record['stages'], strict=True)):
            assert_matches(f'stage {i}', y, summary, GOLDEN_NETWORK)
        normed = golden_model(variant, norm_cfg=dict(type='SyncBN')).eval()(x)
        for i, (y, summary) in enumerate(zip(normed, record['stages_after_bn'], strict=True)):
            assert_matches(f'normed stage {i}', y, summary, GOLDEN_NETWORK)
        for i, (y, summary) in enumerate(
            zip(raw.switch_to_deploy()(x), record['stages'], strict=True)
        ):
            assert_matches(f'folded stage {i}', y, summary, GOLDEN_NETWORK)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in raw.modules())


def test_train_mode_statistics_and_gradients_match_the_authors():
    record = load_golden('inceptionnext/atto')['train_mode']
    model = golden_model('atto', output_norm=False).train()
    x = golden_input((2, 3, 64, 64)).requires_grad_()
    outputs = model(x)
    loss = sum((y * golden_input(y.shape, seed=1)).sum() for y in outputs)
    loss.backward()
    for i, (y, summary) in enumerate(zip(outputs, record['stages'], strict=True)):
        assert_matches(f'stage {i}', y, summary, GOLDEN_TRAIN_MODE)
    assert_matches('input gradient', x.grad, record['grad_input'], GOLDEN_TRAIN_MODE)
    for key, summary in record['grad_params'].items():
        # A bias in front of a batch norm has no gradient but the rounding of terms of order one.
        assert_matches(key, model.get_parameter(key).grad, summary, GOLDEN_TRAIN_MODE, floor=0.1)
    for key, summary in record['running_after'].items():
        assert_matches(key, model.get_buffer(key), summary, GOLDEN_TRAIN_MODE)
    assert model.stem[1].num_batches_tracked == record['num_batches_tracked']


@pytest.mark.parametrize(
    ('name', 'channels', 'band', 'ratio'),
    [('block-c96', 96, 11, 1 / 8), ('block-c40-k9-r4', 40, 9, 1 / 4)],
)
def test_block_matches_the_authors(name, channels, band, ratio):
    record = load_golden(f'inceptionnext/{name}')
    block = MetaNeXtBlock(
        channels,
        InceptionDWConv2d(channels, band_kernel_size=band, branch_ratio=ratio),
        nn.BatchNorm2d(channels),
        ConvMlp(channels, int(record['mlp_ratio'] * channels)),
        layer_scale_init=1.0,
    )
    load_golden_weights(block).eval()
    x = golden_input(record['input']['shape'], record['input']['seed']).requires_grad_()
    y = block(x)
    (y * golden_input(y.shape, seed=1)).sum().backward()
    assert_matches('output', y, record['output'], GOLDEN_OPERATOR)
    assert_matches('input gradient', x.grad, record['grad_input'], GOLDEN_OPERATOR)
    for key, summary in record['grad_params'].items():
        assert_matches(key, block.get_parameter(key).grad, summary, GOLDEN_NETWORK)


@pytest.mark.slow
@pytest.mark.parametrize('variant', ['atto', 'tiny'])
def test_same_features_as_timm(variant):
    timm = pytest.importorskip('timm')
    theirs = timm.create_model(f'inception_next_{variant}', features_only=True).eval()
    ours = InceptionNeXt(variant, output_norm=False).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = golden_input((1, 3, 75, 64))
    with torch.no_grad():
        for got, want in zip(ours(x), theirs(x), strict=True):
            assert_close(variant, got, want, 10 * TOLERANCE[torch.float32][0])


def test_layer_scale_can_be_left_out():
    model = InceptionNeXt(dict(depths=(1, 1, 1, 1), dims=(16, 16, 16, 16)), layer_scale_init=None)
    assert not any(key.endswith('gamma') for key in model.state_dict())
    model.switch_to_deploy()(torch.zeros(1, 3, 32, 32))


def test_drop_path_rises_linearly_over_the_blocks():
    model = InceptionNeXt('tiny', drop_path_rate=0.2)
    rates = [block.drop_path.rate for stage in model.stages for block in stage.blocks]
    assert rates == pytest.approx([0.2 * i / 17 for i in range(18)])
