"""RecNeXt against recorded outputs, gradients and counts of the authors' networks."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from mmlk.backbones import RecNeXt
from mmlk.data.scene import make_scene
from mmlk.layers import ConvNormMlp, RecAttn2d
from mmlk.networks.blocks import MetaNeXtBlock
from mmlk.networks.recnext_parts import RecNeXtDownsample
from mmlk.ops import RecConv2d
from tests.cases import GOLDEN_NETWORK, GOLDEN_OPERATOR, GOLDEN_TRAIN_MODE, TOLERANCE, assert_close
from tests.golden_weights import (
    golden_input,
    golden_tensor,
    load_golden,
    load_golden_weights,
    sampled,
)

RECORDED = [
    'm0',
    'm1',
    'm3',
    'm5',
    'a0',
    'a2',
    'a3',
    'a5',
    't',
    'b',
    't_share_channel',
    's_share_channel',
    'b_share_channel',
]
QUICK = ('m0', 'a0')


def slow_unless_quick(names):
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in names]


NETWORKS = slow_unless_quick(RECORDED)
BN = dict(type='BN')

# variant -> parameters with both heads, with the authors' fusion, and 1e9 multiply-adds at 224.
COUNTS = {
    'm0': (2_832_420, 2_502_400, 0.4046),
    'm1': (5_561_384, 5_160_520, 0.8525),
    'm2': (7_326_828, 6_859_320, 1.1471),
    'm3': (8_752_368, 8_219_752, 1.3782),
    'm4': (14_630_128, 14_084_072, 2.3553),
    'm5': (23_592_120, 22_902_600, 4.6547),
    'a0': (3_115_220, 2_775_200, 0.4241),
    'a1': (6_313_976, 5_892_712, 0.9005),
    'a2': (8_376_436, 7_885_128, 1.2142),
    'a3': (9_586_944, 9_030_416, 1.3834),
    'a4': (16_342_304, 15_750_496, 2.3725),
    'a5': (26_433_020, 25_674_610, 4.7016),
    't': (12_729_296, 12_112_520, 0.3372),
    's': (16_485_584, 15_847_976, 0.6944),
    'b': (19_927_632, 19_251_752, 1.1449),
    't_share_channel': (12_662_480, 12_049_800, 0.3385),
    's_share_channel': (16_403_664, 15_771_688, 0.6975),
    'b_share_channel': (19_845_712, 19_175_464, 1.1480),
}


def assert_matches(name, tensor, summary, tolerance, floor=1e-3):
    got, want = sampled(tensor, summary)
    assert (got - want).abs().max() <= tolerance * max(summary['std'], floor), name


def golden_model(variant):
    model = load_golden_weights(RecNeXt(variant))
    tweak = load_golden(f'recnext/recnext_{variant}')['weight_tweak_after_golden_fill']
    suffixes, scale = (tuple(tweak['suffixes']), tweak['scale']) if tweak else ((), 1.0)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter *= scale if key.endswith(suffixes) else 1.0
    return model


def count(module):
    return sum(p.numel() for p in module.parameters())


def head_parameters(width, norms=True):
    """One linear branch of 1000 classes, with its norm or with that folded."""
    return 1000 * (width + 1) + 2 * width * norms


class Head(torch.nn.Module):
    """The authors' two-branch classifier, for the recorded logits; not part of the package."""

    def __init__(self, width):
        super().__init__()
        for name in ('head', 'head_dist'):
            branch = torch.nn.Module()
            branch.norm, branch.linear = torch.nn.BatchNorm1d(width), torch.nn.Linear(width, 1000)
            self.add_module(name, branch)
        self.load_state_dict(
            {
                key: golden_tensor(f'head.{key}', value.shape, value.dtype)
                for key, value in self.state_dict().items()
            }
        )

    def forward(self, x):
        pooled = x.mean((2, 3))
        return [branch.linear(branch.norm(pooled)) for branch in (self.head, self.head_dist)]


@pytest.mark.parametrize('variant', RECORDED)
def test_keys_and_shapes_are_the_authors(variant):
    record = load_golden(f'recnext/recnext_{variant}')
    with torch.device('meta'):
        model = RecNeXt(variant)
    want = [(key, shape) for key, shape, _, headless in record['state_dict'] if headless]
    assert [(key, list(value.shape)) for key, value in model.state_dict().items()] == want


@pytest.mark.parametrize('variant', COUNTS)
def test_parameters_are_the_published(variant):
    with torch.device('meta'):
        model = RecNeXt(variant)
    assert count(model) + 2 * head_parameters(model.dims[-1]) == COUNTS[variant][0]


@pytest.mark.parametrize('variant', slow_unless_quick(COUNTS))
def test_multiply_adds_are_the_published(variant):
    with torch.device('meta'):
        model = RecNeXt(variant).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, 224, 224, device='meta'))
    found = counter.get_total_flops() / 2e9 + 2e-6 * model.dims[-1]
    # The stride-8 networks take the cheaper order of the attention's products.
    saving = 0.0004 if variant[0] in 'tsb' else 0.0
    assert COUNTS[variant][2] - saving - 6e-5 <= found <= COUNTS[variant][2] + 6e-5


@pytest.mark.parametrize('variant', slow_unless_quick(COUNTS))
def test_folded_parameters_are_the_published(variant):
    _, fused, _ = COUNTS[variant]
    with torch.device('meta'):
        model = RecNeXt(variant)
    # The authors leave the norm between an M block's mixers and the downsampling's norm unfolded.
    between = [
        block.norm
        for stage in model.stages
        for block in stage.blocks
        if isinstance(getattr(block, 'norm', None), _BatchNorm)
    ]
    after = [
        stage.downsample.norm
        for stage in model.stages
        if isinstance(getattr(stage.downsample, 'norm', None), _BatchNorm)
    ]
    unfolded = sum(count(norm) for norm in (*between, *after))
    model.switch_to_deploy()
    assert not any(isinstance(module, _BatchNorm) for module in model.modules())
    assert count(model) + head_parameters(model.dims[-1], norms=False) == fused - unfolded


@pytest.mark.parametrize('case', [0, 1], ids=['64x64', '97x131'])
@pytest.mark.parametrize('variant', NETWORKS)
def test_stages_and_logits_match_the_authors_plain_and_folded(variant, case):
    record = load_golden(f'recnext/recnext_{variant}')['cases'][case]
    model, x = golden_model(variant).eval(), golden_input(record['input_shape'])
    head = Head(model.dims[-1]).eval()
    for form in ('plain', 'folded'):
        with torch.no_grad():
            outputs = model(x)
            assert_matches('stem', model.stem(x), record['outputs']['stem'], GOLDEN_NETWORK)
            logits = torch.stack(head(outputs[-1])).mean(0)
        for i, y in enumerate(outputs):
            assert_matches(f'{form} {i}', y, record['outputs'][f'stage{i}'], GOLDEN_NETWORK)
        assert_matches(f'{form} logits', logits, record['outputs']['logits'], GOLDEN_NETWORK)
        model.switch_to_deploy()


@pytest.mark.parametrize('variant', NETWORKS)
def test_train_mode_matches_the_authors(variant):
    record = load_golden(f'recnext/recnext_{variant}')['train_mode_case']
    model = golden_model(variant).train()
    with torch.no_grad():
        outputs = model(golden_input(record['input_shape']))
    named = {f'stage{i}': y for i, y in enumerate(outputs)}
    # The head's norm over two images, like one over one pixel of two images at the end of the
    # stride-8 networks, is the sign of a difference that rounding decides: nothing to compare.
    for name in list(named)[: None if outputs[-1].shape[2] > 1 else 3]:
        assert_matches(name, named[name], record['outputs'][name], GOLDEN_TRAIN_MODE)
    for key, summary in record['running_stats_after_one_step'].items():
        assert_matches(key, model.get_buffer(key), summary, GOLDEN_TRAIN_MODE)


def check_module(module, case):
    assert [[k, list(v.shape), str(v.dtype)[6:]] for k, v in module.state_dict().items()] == case[
        'state_dict'
    ]
    load_golden_weights(module).train(case['train_mode'])
    tolerance = GOLDEN_TRAIN_MODE if case['train_mode'] else GOLDEN_OPERATOR
    for layout in (torch.contiguous_format, torch.channels_last):
        module.zero_grad()
        x = golden_input(case['input_shape']).contiguous(memory_format=layout).requires_grad_()
        y = module(x)
        (y * golden_input(y.shape, seed=1)).sum().backward()
        assert_matches('output', y, case['output'], tolerance)
        assert_matches('input gradient', x.grad, case['grad_input'], tolerance)
        for key, summary in case['grads'].items():
            # A bias in front of a batch norm has no gradient but the rounding of larger terms.
            assert_matches(key, module.get_parameter(key).grad, summary, tolerance, floor=0.1)


@pytest.mark.parametrize('index', range(8))
def test_recursive_attention_matches_the_authors(index):
    case = load_golden('recnext/operator-recattn')['cases'][index]
    check_module(RecAttn2d(case['dim'], case['num_heads'], case['kernel_size']), case)


@pytest.mark.parametrize('index', range(5))
@pytest.mark.parametrize('series', ['m', 'a'])
def test_block_and_downsampling_match_the_authors(series, index):
    case = load_golden(f'recnext/operator-block-{series}')['cases'][index]
    channels, stage = case['in_channels'], case.get('stage')

    def mixer(width):
        return ConvNormMlp(width, int(width * case['mlp_ratio']), bias=False, norm_cfg=BN)

    def block():
        recursive = series == 'm'
        return MetaNeXtBlock(
            channels,
            RecConv2d(channels, level=4 - stage)
            if recursive
            else RecAttn2d(channels, 2 ** (stage + 1)),
            nn.BatchNorm2d(channels) if recursive else nn.Identity(),
            mixer(channels),
            names=('token_mixer', 'channel_mixer'),
        )

    build = {
        'MetaNeXtBlock': block,
        'Downsample': lambda: RecNeXtDownsample(channels, mixer, norm_cfg=BN),
    }
    check_module(build[case['class']](), case)


@pytest.mark.parametrize('series', ['a', 'stride8', 'stride8_shared'])
def test_other_series_recompute_and_fold_without_change(series):
    arch = dict(dims=(32, 64, 128, 256), depths=(1, 1, 1, 6), series=series)
    torch.manual_seed(0)
    plain, saving = RecNeXt(arch), RecNeXt(arch, with_cp=True)
    saving.load_state_dict(plain.state_dict())
    x = golden_input((2, 3, 128, 128))
    for a, b in zip(plain(x), saving(x), strict=True):
        assert_close('output', b, a, TOLERANCE[torch.float32][0])
    saving(x)[-1].square().mean().backward()
    plain(x)[-1].square().mean().backward()
    for key, parameter in plain.stages[3].named_parameters():
        got = saving.stages[3].get_parameter(key).grad
        assert (got - parameter.grad).abs().max() <= 1e-3 * parameter.grad.abs().max() + 1e-6, key
    plain.eval()
    with torch.no_grad():
        want = plain(x)
        for a, b in zip(plain.switch_to_deploy()(x), want, strict=True):
            assert_close('folded', a, b, GOLDEN_NETWORK)
    assert not any(isinstance(module, _BatchNorm) for module in plain.modules())


def test_it_runs_channels_last_on_a_cpu_whatever_the_input():
    model = RecNeXt(dict(dims=(16, 32, 64, 128), depths=(1, 1, 1, 1))).eval()
    seen = []
    model.stages[1].blocks[0].register_forward_hook(lambda module, args, y: seen.append(y))
    with torch.no_grad():
        model(golden_input((1, 3, 64, 96)))
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


def test_drop_path_is_constant_in_the_m_and_a_series_and_rises_in_the_others():
    rates = {}
    for series in ('m', 'stride8'):
        model = RecNeXt(
            dict(dims=(16, 32, 64, 128), depths=(1, 1, 1, 2), series=series), drop_path_rate=0.4
        )
        rates[series] = [block.drop_path.rate for stage in model.stages for block in stage.blocks]
    assert rates['m'] == [0.4] * 5
    assert rates['stride8'] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(layer_scale_init=1e-6), 'RecNeXt: layer_scale_init 1e-06 must be None'),
        (
            dict(arch=dict(dims=(16, 32, 64, 128), depths=(1, 1, 1, 1), series='x')),
            "series 'x' is not",
        ),
        (dict(arch=dict(dims=(16, 40, 64, 128), depths=(1, 1, 1, 1))), 'dims 16 -> 40 of stage 1'),
        (
            dict(arch=dict(dims=(15, 30, 60, 120), depths=(1, 1, 1, 1), series='a')),
            'LinearAttention2d: 2 heads do not divide 15',
        ),
    ],
    ids=['layer-scale', 'series', 'dims', 'heads'],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        RecNeXt(**options)


def test_even_attention_kernel_is_named():
    with pytest.raises(ValueError, match='RecAttn2d: kernel_size 4 must be odd'):
        RecAttn2d(16, 2, 4)


def test_exported_network_holds_plain_operators_only():
    model = RecNeXt(dict(dims=(16, 32, 64, 128), depths=(1, 1, 1, 1), series='a')).eval()
    graph = torch.export.export(model.switch_to_deploy(), (golden_input((1, 3, 64, 64)),)).graph
    called = {str(node.target) for node in graph.nodes if node.op == 'call_function'}
    assert 'aten.conv2d.default' in called and not any('mmlk' in name for name in called)


@pytest.mark.slow
def test_bfloat16_autocast_stays_close_to_float32_on_a_whole_network():
    model = golden_model('m0').eval()
    x = F.interpolate(golden_input((1, 3, 16, 16)), size=(128, 128), mode='bilinear')
    with torch.no_grad():
        want = model(x)
        with torch.autocast('cpu', torch.bfloat16):
            got = model(x)
    for a, b in zip(got, want, strict=True):
        assert (a.float() - b).norm() <= 0.02 * b.norm()


def scene():
    """A generated scene, normalised as the configs do."""
    image = torch.from_numpy(make_scene(0, 'validation', 1, 160, 224).image)
    mean, deviation = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    return ((image - mean) / deviation).permute(2, 0, 1)[None]


@torch.no_grad()
def test_bfloat16_autocast_stays_within_two_percent_on_a_scene_through_five_levels():
    stem = golden_model('m0').stem.eval()
    recursion = load_golden_weights(RecConv2d(40, level=5))
    x = stem(scene())
    want = recursion(x)
    with torch.autocast('cpu', torch.bfloat16):
        got = recursion(x)
    assert got.dtype == torch.bfloat16
    assert (got.float() - want).norm() <= 0.02 * want.norm()
    assert (got.float() - want).abs().max() <= 0.02 * want.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize('variant', ['m0', 'a0'])
@torch.no_grad()
def test_bfloat16_autocast_stays_close_to_float32_on_a_scene(variant):
    model = golden_model(variant).eval()
    x = scene()
    want = model(x)
    with torch.autocast('cpu', torch.bfloat16):
        got = model(x)
    for a, b in zip(got, want, strict=True):
        assert (a.float() - b).norm() <= 0.02 * b.norm()


MICRO = dict(dims=(16, 32, 64, 128), depths=(1, 1, 1, 1))


def published_forms(state):
    head = {'head.head.linear.weight': torch.zeros(1000, 128)}
    dense = {f'backbone.{key}': value for key, value in state.items()}
    dense['decode_head.conv_seg.weight'] = torch.zeros(150, 128, 1, 1)
    dense['neck.lateral_convs.0.conv.weight'] = torch.zeros(256, 16, 1, 1)
    return {
        'released': {'model': {**state, **head}},
        'hub': {**state, **head},
        'dense': {'meta': {'epoch': 12}, 'state_dict': dense},
    }


@pytest.mark.parametrize('form', ['released', 'hub', 'dense'])
def test_published_files_load_in_every_form(form, tmp_path):
    source, target = RecNeXt(MICRO), RecNeXt(MICRO)
    torch.save(published_forms(source.state_dict())[form], tmp_path / 'weights.pth')
    prefix = {'dense': dict(prefix='backbone.')}.get(form, {})
    target.init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'weights.pth'), **prefix)
    target.init_weights()
    for key, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[key], value), key


def test_fused_torchscript_file_is_refused_with_its_name(tmp_path):
    torch.jit.script(torch.nn.Conv2d(3, 4, 1)).save(str(tmp_path / 'recnext_m3_fused.pt'))
    model = RecNeXt(MICRO)
    model.init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'recnext_m3_fused.pt'))
    with pytest.raises((ValueError, RuntimeError), match='TorchScript'):
        model.init_weights()
