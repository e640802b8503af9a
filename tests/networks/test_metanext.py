"""Networks assembled from parts: the published ones are settings of them, and any mixture works."""

import itertools

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS as ROOT
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS as PRETRAIN
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import mmlk
from mmlk import backbones
from mmlk.cli.fit import check_fit
from mmlk.cli.hooks import bring_hooks
from mmlk.networks import FAMILIES, DCLSConvNeXt, MetaNeXt, SLaK
from mmlk.networks.assembly import Assembled
from mmlk.networks.blocks import ConvNeXtBlock, MetaNeXtBlock
from tests.cases import GOLDEN_NETWORK, MICRO_ARCHS, TOLERANCE, assert_close, away
from tests.engine.test_layer_decay import Segmentor, build, settings_by_name
from tests.golden_weights import assert_matches, golden_input, load_golden, load_golden_weights

OUTPUT, GRADIENT = TOLERANCE[torch.float32]
SIZE = dict(depths=(2, 2, 2, 2), dims=(16, 32, 64, 128))
MIXERS = [
    [dict(type='InceptionDWConv2d', band_kernel_size=5), dict(type='RecConv2d', level=2)],
    [
        dict(type='LargeKernelDWConv2d', kernel_size=9, small_kernel_size=3),
        dict(type='LargeKernelDWConv2d', kernel_size=7, small_kernel_size=3, decomposed=False),
    ],
    [
        dict(type='DCLSDepthwiseConv2d', kernel_count=4, kernel_size=7, version='gauss'),
        dict(type='RecAttn2d', num_heads=4),
    ],
    [dict(type='DepthwiseConv2d', kernel_size=(3, 5)), dict(type='Pooling')],
]


def small(token_mixer=MIXERS, **options):
    torch.manual_seed(0)
    return away(MetaNeXt(SIZE, token_mixer=token_mixer, **options))


def images(side=64):
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


def shapes(model):
    return [(key, value.shape) for key, value in model.state_dict().items()]


def test_every_published_network_but_those_that_hand_attention_on_is_a_setting():
    want = {
        f'{family}_{arch}'
        for family, kind in FAMILIES.items()
        if issubclass(kind, Assembled)  # RepLKNet's blocks come in pairs
        for arch, settings in kind.arch_settings.items()
        if not settings.get('series', '').startswith('stride8')
    }
    assert set(MetaNeXt.arch_settings) == want


@pytest.mark.parametrize(
    'name',
    [
        'inceptionnext_atto',
        'slak_tiny',
        'dcls_convnext_tiny_gauss',
        'recnext_m0',
        'recnext_a0',
        'unireplknet_t',
    ],
)
def test_a_published_setting_has_the_keys_of_its_family(name):
    family = max((each for each in FAMILIES if name.startswith(each)), key=len)
    with torch.device('meta'):
        mine = MetaNeXt(name, output_norm=False)
        theirs = FAMILIES[family](name.removeprefix(f'{family}_'), output_norm=False)
    assert shapes(mine) == shapes(theirs)
    assert mine.family == family and mine.checkpoint_options == theirs.checkpoint_options
    assert mine.no_weight_decay == theirs.no_weight_decay
    rates = [[m.rate for m in each.modules() if hasattr(m, 'rate')] for each in (mine, theirs)]
    assert rates[0] == rates[1]


def assert_stages(model, x, summaries):
    """The recorded stages, of the network as it is and folded."""
    with torch.no_grad():
        for form in ('plain', 'folded'):
            for i, (y, summary) in enumerate(zip(model(x), summaries, strict=True)):
                assert_matches(f'{form} stage {i}', y, summary, GOLDEN_NETWORK)
            model.switch_to_deploy()


def test_inceptionnext_as_settings_computes_what_the_authors_do():
    case = load_golden('inceptionnext/atto')['cases'][0]
    model = load_golden_weights(MetaNeXt('inceptionnext_atto', output_norm=False)).eval()
    x = golden_input(case['input']['shape'], case['input']['seed'])
    assert_stages(model, x, case['stages'])


@pytest.mark.parametrize('variant', ['m0', 'a0'])
def test_recnext_as_settings_computes_what_the_authors_do(variant):
    record = load_golden(f'recnext/recnext_{variant}')
    model = load_golden_weights(MetaNeXt(f'recnext_{variant}', output_norm=False)).eval()
    tweak = record['weight_tweak_after_golden_fill'] or dict(suffixes=(), scale=1)
    for key, parameter in model.named_parameters():
        parameter.data *= tweak['scale'] if key.endswith(tuple(tweak['suffixes'])) else 1
    case = record['cases'][0]
    stages = [case['outputs'][f'stage{i}'] for i in range(4)]
    assert_stages(model, golden_input(case['input_shape']), stages)


def test_slak_as_settings_computes_what_the_authors_do():
    record = load_golden('slak/slak_micro')
    run = record['runs'][0]
    config = record['config']
    arch = dict(
        depths=config['depths'],
        dims=record['stage_dims'],
        kernel_sizes=config['kernel_size'][:4],
        small_kernel_size=config['kernel_size'][4],
        decomposed=config['Decom'],
        branch_norm=True,
    )
    model = load_golden_weights(MetaNeXt(SLaK.parts(arch))).eval()
    x = golden_input(run['input_shape'], run['input_seed'])
    assert_stages(model, x, run['dense_outputs_after_norm'])


def test_dcls_convnext_as_settings_computes_the_same():
    arch = dict(MICRO_ARCHS['DCLSConvNeXt'], version='v0')
    family = away(DCLSConvNeXt(arch)).train()
    model = MetaNeXt(DCLSConvNeXt.parts(arch)).train()
    model.load_state_dict(family.state_dict(), strict=True)
    for got, want in zip(model(images()), family(images()), strict=True):
        assert torch.equal(got, want)


TEMPLATES = ('InceptionNeXt', 'ConvNeXt', 'RecNeXt')
CHANNEL_MIXERS = [dict(type='ConvMlp', ratio=2), dict(type='ConvNormMlp', norm_cfg=dict(type='BN'))]
COMBINATIONS = [
    (*each, number % 3 / 2)  # with and without a layer scale
    for number, each in enumerate(itertools.product(TEMPLATES, ('BN', 'LN2d'), CHANNEL_MIXERS))
]


@pytest.mark.parametrize(('block', 'norm', 'channel_mixer', 'scale'), COMBINATIONS)
def test_a_block_is_its_formula_and_folds(block, norm, channel_mixer, scale):
    """In each template, with each norm and channel mixer, with and without a layer scale."""
    network = small(
        MIXERS,
        block=dict(type=block),
        norm_cfg=dict(type=norm),
        channel_mixer=channel_mixer,
        layer_scale_init=scale,
        output_norm=False,
    ).eval()
    stage = network.stages[1]
    module = getattr(stage, 'blocks', stage)[0]
    assert (module.gamma is None) == (scale == 0)
    x = torch.randn(2, 32, 9, 8, generator=torch.Generator().manual_seed(2))
    y = module.mixer(x)
    if isinstance(module, ConvNeXtBlock):
        if norm == 'LN2d':
            y = module.norm(y.permute(0, 2, 3, 1))
        else:
            y = module.norm(y).permute(0, 2, 3, 1)
        y = module.pwconv2(module.act(module.pwconv1(y))).permute(0, 3, 1, 2)
    else:
        assert isinstance(module, MetaNeXtBlock)
        mixer = module.channel_mixer if block == 'RecNeXt' else module.mlp
        y = mixer(module.norm(y))
    want = x + (y if module.gamma is None else y * module.gamma[:, None, None])
    assert_close('block', module(x), want, 10 * OUTPUT)
    with torch.no_grad():
        outputs = network(images())
        network.switch_to_deploy()
        assert_close('folded block', module(x), want, 20 * OUTPUT)
        for got, expected in zip(network(images()), outputs, strict=True):
            assert_close('folded network', got, expected, 50 * OUTPUT)
    if norm == 'BN':
        assert not any(isinstance(each, _BatchNorm) for each in network.modules())


@pytest.mark.parametrize(
    ('block', 'stem'), [('InceptionNeXt', 'RecNeXtStem'), ('RecNeXt', 'PatchStem')]
)
def test_every_mixer_trains_in_every_template(block, stem):
    model = small(MIXERS, block=dict(type=block), stem=dict(type=stem)).train()
    sum(y.square().mean() for y in model(images())).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        model.layer_location(key)
    saved = small(MIXERS, block=dict(type=block), stem=dict(type=stem))
    assert saved.load_state_dict(model.state_dict(), strict=True) == ([], [])


def test_it_describes_itself():
    lines = small().describe().splitlines()
    assert len(lines) == 4
    assert lines[0] == (
        'stage 0, stride 4, 16 channels: 1 x InceptionDWConv2d(split=(10, 2, 2, 2)), '
        '1 x RecConv2d(level=2, mode=bilinear)'
    )


def dcls(count=4, **options):
    return dict(type='DCLSDepthwiseConv2d', kernel_count=count, kernel_size=7, **options)


def test_blocks_of_a_stage_with_equal_entries_share_positions():
    mixers = [[dcls(), dcls()], [dcls(), dcls(5)], dcls(), dcls()]
    model = MetaNeXt(SIZE, token_mixer=mixers, block=dict(type='RecNeXt'))
    positions = [[block.mixer.P for block in stage.blocks] for stage in model.stages]
    assert [first is second for first, second in positions] == [True, False, True, True]
    apart = MetaNeXt(SIZE, token_mixer=mixers, share_positions=False)
    assert len([name for name, _ in apart.named_parameters() if name.endswith('.P')]) == 8
    state = model.state_dict()
    del state['stages.0.blocks.1.token_mixer.P']
    model.load_state_dict(state, strict=True)
    assert {name.rpartition('.')[2] for name in model.no_weight_decay} == {'P', 'SIG'}


def test_positions_are_clamped_before_a_training_step():
    model = MetaNeXt(SIZE, token_mixer=dcls()).train()
    mixer = model.stages[0].blocks[0].mixer
    with torch.no_grad():
        mixer.P.fill_(9)
    model(images())
    assert mixer.P.max() == 3


class Shift(nn.Module):
    """A mixer that knows nothing of this package."""

    def __init__(self, channels, step=1):
        super().__init__()
        self.step = step
        self.weight = nn.Parameter(torch.ones(channels, 1, 1))

    def forward(self, x):
        return x.roll(self.step, 3) * self.weight


class Folding(Shift):
    no_weight_decay = ('weight',)

    def switch_to_deploy(self):
        return Shift(self.weight.shape[0], self.step).requires_grad_(False)


def test_a_class_of_ones_own_needs_a_forward_alone():
    model = away(MetaNeXt(SIZE, token_mixer=dict(type=Shift, step=2), with_cp=True)).train()
    sum(y.square().mean() for y in model(images())).backward()
    assert all(p.grad is not None for p in model.parameters())
    want = model.eval()(images())
    for got, expected in zip(model.switch_to_deploy()(images()), want, strict=True):
        assert_close('folded', got, expected, 20 * OUTPUT)


def test_a_mixer_of_ones_own_may_fold_and_say_what_does_not_decay():
    model = MetaNeXt(SIZE, token_mixer=dict(type=Folding))
    whole = Segmentor(model)
    groups = settings_by_name(whole, build(whole, decay_rate=0.9))
    decayed = {name for name, group in groups.items() if group['weight_decay']}
    assert 'backbone.stages.3.blocks.1.mlp.fc1.weight' in decayed
    assert not any(name.endswith('token_mixer.weight') for name in decayed)
    model.switch_to_deploy()
    assert {type(mixer) for mixer in model.token_mixers().values()} == {Shift}


@pytest.mark.parametrize(
    ('registry', 'scope', 'names'),
    [
        pytest.param(ROOT, None, ['OfThisTest'], id='mmengine'),
        pytest.param(
            PRETRAIN,
            'mmpretrain',
            ['OfThisTest', 'mmpretrain.OfThisTest'],
            id='mmpretrain',
            marks=pytest.mark.slow,  # it imports all models of MMPretrain
        ),
    ],
)
def test_registered_mixers_are_found(registry, scope, names, monkeypatch):
    monkeypatch.setitem(registry.module_dict, 'OfThisTest', Shift)
    for name in names:
        arch = dict(SIZE, token_mixer=dict(type=name))
        with DefaultScope.overwrite_default_scope(None if '.' in name else scope):
            model = backbones.MetaNeXt(arch)
        assert {type(mixer) for mixer in model.token_mixers().values()} == {Shift}
        with pytest.raises(ValueError, match=f"'{name}' is not one of InceptionDWConv2d"):
            MetaNeXt(arch)


def test_hooks_that_a_mixer_needs_are_brought():
    def brought(kind):
        backbone = dict(
            type='mmlk.MetaNeXt', arch='inceptionnext_atto', token_mixer=dict(type=kind)
        )
        return ' '.join(bring_hooks(Config(dict(model=dict(backbone=backbone)))))

    assert 'mmlk.DCLSClampHook added' in brought('mmlk.DCLSDepthwiseConv2d')
    assert 'DCLSClampHook' not in brought('mmlk.RecConv2d')


def test_weights_of_a_family_load_where_the_parts_are_its_own(tmp_path):
    kind = FAMILIES['inceptionnext']
    torch.save(kind('atto', output_norm=False).state_dict(), tmp_path / 'a.pth')
    same = MetaNeXt('inceptionnext_atto')
    assert same.load_pretrained(tmp_path / 'a.pth').covered
    other = MetaNeXt('inceptionnext_atto', token_mixer=dict(type='RecConv2d'))
    before = {key: value.clone() for key, value in other.state_dict().items()}
    with pytest.raises(ValueError, match='has other parts'):
        other.load_pretrained(tmp_path / 'a.pth')
    assert all(torch.equal(value, before[key]) for key, value in other.state_dict().items())


def test_the_tools_know_whose_weights_fit():
    def model(**options):
        weights = dict(type='Pretrained', checkpoint='mmlk://inceptionnext_tiny')
        backbone = dict(type='mmlk.MetaNeXt', arch='inceptionnext_tiny', **options)
        return Config(dict(model=dict(backbone=dict(backbone, init_cfg=weights))))

    check_fit(model())
    with pytest.raises(ValueError, match='holds weights of inceptionnext tiny'):
        check_fit(model(token_mixer=dict(type='mmlk.RecConv2d')))


def test_create_model_takes_parts():
    options = dict(token_mixer=dict(type='mmlk.RecConv2d', level=2), num_classes=5)
    model = mmlk.create_model('inceptionnext_atto', **options).eval()
    assert isinstance(model.backbone, MetaNeXt)
    assert model(images()).shape == (2, 5)
    with pytest.raises(ValueError, match="'recnext_t' is not one of"):
        mmlk.create_model('recnext_t', **options)


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        (dict(token_mixer=dict(type='Inception')), ['token_mixer', "'Inception'", 'RecConv2d']),
        (dict(token_mixer=dict(kernel_size=3)), ['no dict with a type']),
        (dict(token_mixer='RecConv2d'), ["'RecConv2d'", 'no dict with a type']),
        (dict(token_mixer=dict(type='RecConv2d', levels=2)), ['levels', 'kernel_size, level, mode']),
        (dict(token_mixer=[dict(type='Identity')] * 3), ['list of 3', 'list of 4']),
        (dict(token_mixer=[[dict(type='Identity')] * 3] * 4), ['stage 0', 'list of 3', 'list of 2']),
        (dict(token_mixer=dict(type='RecAttn2d', num_heads=7)), ['block 0 (16 channels)', '7 heads']),
        (dict(token_mixer=dict(type='InceptionDWConv2d', branch_ratio=0.5)), ['between 1 and 5']),
        (dict(token_mixer=dict(type='DepthwiseConv2d', kernel_size=4)), ['(4, 4)', 'odd']),
        (dict(token_mixer=dict(type='Pooling', kernel_size=2)), ['(2,)', 'odd']),
        (dict(block=dict(type='Swin')), ["block: type 'Swin'", 'InceptionNeXt, ConvNeXt, RecNeXt']),
        (dict(block=dict(type='ConvNeXt', mixer_name='norm')), ["'norm'", 'dwconv, large_kernel']),
        (dict(block=dict(type='RecNeXt', mixer_name='dwconv')), ['no option mixer_name', 'takes norm']),
        (dict(stem=dict(type='Conv')), ["stem: type 'Conv'", 'PatchStem, RecNeXtStem']),
        (dict(channel_mixer=dict(type='Mlp')), ["'Mlp'", 'ConvMlp, ConvNormMlp']),
        (dict(channel_mixer=[dict(type='ConvMlp')] * 5), ['channel_mixer', 'list of 5', 'list of 4']),
        (dict(norm_cfg=dict(type='GN')), ["'GN'", 'BN, SyncBN, LN2d']),
    ],
    ids=lambda value: str(value)[:50],
)  # fmt: skip
def test_what_does_not_fit_is_named(options, words):
    with pytest.raises(ValueError) as raised:
        MetaNeXt(SIZE, **{'token_mixer': dict(type='Identity'), **options})
    assert all(word in str(raised.value) for word in words), str(raised.value)


def test_parts_that_contradict_each_other_are_named():
    with pytest.raises(ValueError, match='token_mixer is missing'):
        MetaNeXt(SIZE)
    uneven = dict(depths=(1, 1, 1, 1), dims=(16, 24, 32, 64))
    with pytest.raises(ValueError, match='16 -> 24 of stage 1.*doubles the channels'):
        MetaNeXt(uneven, token_mixer=dict(type='Identity'), block=dict(type='RecNeXt'))


@pytest.mark.parametrize(
    'layer',
    [lambda channels: nn.Conv2d(channels, channels, 3), lambda channels: nn.Conv2d(channels, 8, 1)],
    ids=['no padding', 'other channels'],
)
def test_a_mixer_that_changes_the_shape_is_named(layer):
    model = MetaNeXt(SIZE, token_mixer=dict(type=layer)).eval()
    with pytest.raises(ValueError, match=r'Conv2d turns \(2, 16, 16, 16\).*keeps the shape'):
        model(images())
