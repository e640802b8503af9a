"""Other operators in the place of depthwise convolutions: what is exact, and what is stated.

Other convolutions: test_convert_dense.py.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

import mmlk
from mmlk.ops import (
    DCLSConv2d,
    DCLSDepthwiseConv2d,
    DepthwiseConv2d,
    InceptionDWConv2d,
    LargeKernelDWConv2d,
    RecConv2d,
    dcls_kernel2d_reference,
)
from mmlk.surgery import AcceleratedConv2d
from mmlk.surgery.parts import PARTS
from mmlk.surgery.patterns import parse_pattern
from tests.cases import TOLERANCE, assert_close
from tests.surgery.networks import Net, depthwise, flat, network

LARGER = dict(type='mmlk.DepthwiseConv2d', kernel_size=13)
EXACT = {
    'larger': LARGER,
    'larger, not square': dict(type='DepthwiseConv2d', kernel_size=(9, 15)),
    'elements v0': dict(type='mmlk.DCLSDepthwiseConv2d', kernel_count=49, kernel_size=11),
    'elements v1': dict(type='mmlk.DCLSDepthwiseConv2d', kernel_count=55, version='v1'),
    'elements, any padding': dict(type='mmlk.DCLSConv2d', kernel_count=49, dilated_kernel_size=11),
    'strips': dict(type='mmlk.LargeKernelDWConv2d', kernel_size=21, small_kernel_size=11),
    'full and small': dict(type='mmlk.LargeKernelDWConv2d', kernel_size=13, decomposed=False),
}
EVERY = {
    **EXACT,
    'elements, few': dict(type='mmlk.DCLSDepthwiseConv2d', kernel_count=20),
    'elements max': dict(type='mmlk.DCLSDepthwiseConv2d', kernel_count=49, version='max'),
    'elements gauss': dict(
        type='mmlk.DCLSDepthwiseConv2d', kernel_count=30, kernel_size=9, version='gauss'
    ),
    'narrow strips': dict(type='mmlk.LargeKernelDWConv2d', kernel_size=21, small_kernel_size=3),
    'smaller': dict(type='mmlk.DepthwiseConv2d', kernel_size=3),
    'bands': dict(type='mmlk.InceptionDWConv2d', branch_ratio=0.25),
    'recursion': dict(type='mmlk.RecConv2d', kernel_size=7, level=2),
}
CLASSES = {
    'DepthwiseConv2d': DepthwiseConv2d,
    'DCLSDepthwiseConv2d': DCLSDepthwiseConv2d,
    'DCLSConv2d': DCLSConv2d,
    'LargeKernelDWConv2d': LargeKernelDWConv2d,
    'InceptionDWConv2d': InceptionDWConv2d,
    'RecConv2d': RecConv2d,
}


def layer_of(kind, channels=8, **options):
    """A layer that every part of `EVERY` can replace."""
    torch.manual_seed(0)
    options.setdefault('bias', kind != 'recursion')
    return nn.Sequential(depthwise(channels, 7, **options))


def impulse_response(module, channels, side=41):
    """The kernel that a module convolves with, from its answer to single pixels, in float64."""
    x = torch.zeros(1, channels, side, side, dtype=torch.float64)
    y = module(x)
    x[..., side // 2, side // 2] = 1
    return (module(x) - y).flip(2, 3)[0].detach()


def test_every_part_is_tested():
    assert {each['type'].removeprefix('mmlk.') for each in EVERY.values()} == set(PARTS)


@pytest.mark.parametrize('dtype', (torch.float32, torch.float64), ids=str)
@pytest.mark.parametrize('kind', EXACT)
def test_identity_conversions(kind, dtype):
    model = layer_of(kind).to(dtype)
    done = mmlk.convert(model, {'depthwise': EXACT[kind]})
    x = torch.randn(2, 8, 19, 16, dtype=dtype)
    assert done.layers[0].residual == 0 and 'exact' in str(done)
    assert_close('map', done.model(x), model(x), {torch.float32: 1e-6, torch.float64: 1e-13}[dtype])


@pytest.mark.parametrize('kind', EVERY)
def test_the_residual_is_that_of_the_new_module(kind):
    model = layer_of(kind).double()
    done = mmlk.convert(model, {'depthwise==7': EVERY[kind]})
    (found,) = done.layers
    name = EVERY[kind]['type'].removeprefix('mmlk.')
    assert type(done.model[0]) is CLASSES[name] and found.after == f'mmlk.{name}'
    old, new = (impulse_response(each, 8) for each in (model, done.model))
    residual = float((old - new).norm() / old.norm())
    assert residual == pytest.approx(found.residual, rel=1e-9, abs=1e-14)
    assert (residual > 1e-3) == (kind in set(EVERY) - set(EXACT) - {'recursion'})
    counts = (sum(p.numel() for p in each.parameters()) for each in (model, done.model))
    assert found.parameters == tuple(counts)


@pytest.mark.parametrize('kind', EVERY)
def test_the_default_device_does_not_matter(kind):
    model, found = layer_of(kind), []
    for device in ('cpu', 'meta'):
        torch.manual_seed(1)
        with torch.device(device):
            found.append(mmlk.convert(model, {'depthwise': EVERY[kind]}))
    for key, value in found[0].model.state_dict().items():
        assert torch.equal(found[1].model.state_dict()[key], value), key
    assert found[0].layers == found[1].layers


def least_squares(kernel, columns):
    """Closest kernels (C, K) to ``kernel`` (C, K) in the span of ``columns`` (K, M) or (C, K, M)."""
    solution = torch.linalg.lstsq(columns, kernel.unsqueeze(-1), driver='gelsd').solution
    return (columns @ solution).squeeze(-1), solution.squeeze(-1)


def test_strips_are_the_least_squares_solution_of_least_norm():
    model = layer_of('strips').double()
    config = dict(type='mmlk.LargeKernelDWConv2d', kernel_size=9, small_kernel_size=3)
    module = mmlk.convert(model, {'depthwise': config}).model[0]
    kernel = F.pad(model[0].weight.detach()[:, 0], (1, 1, 1, 1)).flatten(1)
    grid = torch.eye(81, dtype=torch.float64).view(81, 9, 9)
    supports = [grid[:, :, 3:6], grid[:, 3:6, :], grid[:, 3:6, 3:6]]
    columns = torch.cat([each.flatten(1) for each in supports], 1)
    fitted, solution = least_squares(kernel, columns.expand(8, -1, -1))
    got = [branch.conv.weight.detach().flatten(1) for branch in module.children()]
    assert_close('weights', torch.cat(got, 1), solution, TOLERANCE[torch.float64][1])
    residual = float((fitted - kernel).norm() / kernel.norm())
    stated = mmlk.convert(model, {'depthwise': config}).layers[0].residual
    assert residual == pytest.approx(stated, rel=1e-10) and 0.1 < residual < 0.9


@pytest.mark.parametrize('version', ('max', 'gauss'))
def test_elements_that_spread_have_least_squares_weights(version):
    model = layer_of('elements').double()
    config = dict(type='mmlk.DCLSDepthwiseConv2d', kernel_count=49, kernel_size=9, version=version)
    done = mmlk.convert(model, {'depthwise': config})
    module = done.model[0]
    alone = torch.stack(
        [
            dcls_kernel2d_reference(
                torch.ones(8, 1, 1).double(),
                module.P[..., index : index + 1],
                module.SIG[..., index : index + 1],
                kernel_size=(9, 9),
                version=version,
            ).flatten(1)
            for index in range(49)
        ],
        2,
    )
    kernel = F.pad(model[0].weight.detach()[:, 0], (1, 1, 1, 1)).flatten(1)
    fitted, solution = least_squares(kernel, alone.detach())
    assert_close('weights', module.weight[:, 0], solution, 1e-9)
    residual = float((fitted - kernel).norm() / kernel.norm())
    assert residual == pytest.approx(done.layers[0].residual, rel=1e-6, abs=1e-13)


@pytest.mark.parametrize('version', ('v0', 'v1'))
def test_few_elements_stand_on_the_largest_taps(version):
    model = layer_of('elements')
    config = dict(type='mmlk.DCLSDepthwiseConv2d', kernel_count=5, version=version)
    module = mmlk.convert(model, {'depthwise': config}).model[0]
    assert torch.equal(module.P, module.P.round())
    taps = model[0].weight.detach().flatten(1)
    order = taps.abs().topk(5, 1)
    assert_close('weights', module.weight[:, 0], taps.gather(1, order.indices), 1e-6)
    kept = torch.zeros_like(taps).scatter(1, order.indices, 1.0) * taps
    assert_close('kernel', module.kernel()[:, 0, 5:12, 5:12].flatten(1), kept, 1e-6)


def test_elements_without_a_tap_weigh_nothing_and_learn():
    model = layer_of('elements')
    config = dict(type='mmlk.DCLSDepthwiseConv2d', kernel_count=60, kernel_size=17)
    module = mmlk.convert(model, {'depthwise': config}).model[0]
    assert (module.weight[..., 49:] == 0).all() and (module.P[..., 49:] != 0).all()
    module(torch.randn(1, 8, 20, 20)).square().sum().backward()
    assert (module.weight.grad != 0).all()


@pytest.mark.parametrize('kind', ('larger', 'elements v0', 'elements v1', 'strips'))
def test_dilated_kernels_are_carried_with_their_zeros(kind):
    model = layer_of(kind, dilation=(2, 1), padding=(6, 3)).double()
    done = mmlk.convert(model, {'depthwise': {**EXACT[kind], 'kernel_size': 13}})
    x = torch.randn(1, 8, 19, 16, dtype=torch.float64)
    assert done.layers[0].before == '7x7, dilation (2, 1)' and done.layers[0].residual == 0
    assert_close('map', done.model(x), model(x), TOLERANCE[torch.float64][0])


@pytest.mark.parametrize('kind', ('larger', 'elements v0'))
def test_steps_are_kept(kind):
    model = layer_of(kind, stride=(2, 1), bias=False)
    x = torch.randn(1, 8, 19, 16)
    converted = mmlk.convert(model, {'depthwise': EXACT[kind]}).model
    assert_close('map', converted(x), model(x), 1e-6)


@pytest.mark.parametrize('dense', (False, True))
def test_converted_strips_fold_with_their_bias(dense):
    model = layer_of('strips')
    module = mmlk.convert(model, {'depthwise': EXACT['strips']}).model[0]
    x = torch.randn(1, 8, 25, 22)
    assert_close('map', module.switch_to_deploy(dense)(x), model(x), 2e-6)


def test_recursion_begins_as_the_convolution_and_learns_all_levels():
    model = layer_of('recursion')
    module = mmlk.convert(model, {'depthwise': EVERY['recursion']}).model[0]
    x = torch.randn(1, 8, 24, 24)
    assert_close('map', module(x), model(x), 1e-6)
    module(x).square().sum().backward()
    assert module.convs[1].weight.grad.abs().max() > 0


NETS = {
    'timm convnext': ('depthwise>=7 in stages.[12]', 2),
    'torchvision convnext': ('depthwise in features.*', 3),
    'torchvision mobilenet_v2': ('depthwise==3x3', 17),
    'mmseg mscan': ('depthwise>7', 16),
}


@pytest.mark.slow
@pytest.mark.parametrize('name', NETS)
def test_networks_of_others(name):
    model = network(name)
    pattern, count = NETS[name]
    longest = 23
    config = dict(type='mmlk.DepthwiseConv2d', kernel_size=longest)
    done = mmlk.convert(model, {pattern: config})
    assert len(done.layers) == count
    assert sum(type(each) is DepthwiseConv2d for each in done.model.modules()) == count
    assert not any(type(each) is DepthwiseConv2d for each in model.modules())
    x = torch.randn(1, 3, 64, 64)
    for got, want in zip(flat(done.model(x)), flat(model(x)), strict=True):
        assert_close('map', got, want, TOLERANCE[torch.float32][0])


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


def test_a_copy_by_default_and_in_place_when_asked(net):
    before = copy.deepcopy(net.state_dict())
    done = mmlk.convert(net, {'depthwise>=7': LARGER})
    assert done.model is not net and type(net.mixers[0]) is nn.Conv2d
    assert [each.names for each in done.layers] == [('mixers.0',), ('mixers.2',)]
    assert mmlk.convert(net, {'depthwise>=7': LARGER}, inplace=True).model is net
    assert type(net.mixers[0]) is type(net.mixers[2]) is DepthwiseConv2d
    assert list(net.state_dict()) == list(before)
    x = torch.randn(1, 3, 20, 20)
    assert_close('output', net(x), done.model(x), 1e-6)


def test_several_rules_and_the_table(net):
    done = mmlk.convert(
        net, {'depthwise==7x7': EXACT['elements v0'], 'depthwise in head': EVERY['narrow strips']}
    )
    head, first, second = str(done).splitlines()
    assert head.split() == ['layer', 'was', 'is', 'parameters', 'weights']
    assert first.split() == 'mixers.0 7x7 mmlk.DCLSDepthwiseConv2d 300 -> 888 exact'.split()
    assert second.startswith('head.0    5x5  mmlk.LargeKernelDWConv2d  156 -> 816') and (
        'residual 0.' in second
    )


def test_mode_dtype_and_frozen_parameters_are_kept(net):
    net.double().eval()
    net.mixers[0].requires_grad_(False)
    module = mmlk.convert(net, {'depthwise==7': EXACT['elements v0']}).model.mixers[0]
    assert not module.training and module.weight.dtype == torch.float64
    assert not any(each.requires_grad for each in module.parameters())


def test_shared_modules_stay_shared(net):
    net.mixers.append(net.mixers[0])
    done = mmlk.convert(net, {'depthwise in mixers.3': LARGER})
    assert done.model.mixers[0] is done.model.mixers[3]
    assert done.layers[0].names == ('mixers.0', 'mixers.3')


def test_accelerated_layers_and_ours_are_converted(net):
    x = torch.randn(1, 3, 30, 30)
    want = net(x)
    assert mmlk.accelerate(net, x).taken
    net.head[0] = mmlk.convert(net.head, {'depthwise': LARGER}).model[0]
    done = mmlk.convert(net, {'depthwise': dict(LARGER, kernel_size=15)})
    assert not any(isinstance(each, AcceleratedConv2d) for each in done.model.modules())
    assert [each.before for each in done.layers] == ['7x7', '1x11', '13x13']
    assert_close('output', done.model(x), want, 1e-5)


PATTERNS = {
    'depthwise': 'abcd',
    'depthwise>=7': 'abc',
    'depthwise > 7': 'c',
    'depthwise<7': 'd',
    'depthwise<=7': 'abd',
    'depthwise==7': 'ab',
    'depthwise==1x11': 'c',
    'depthwise==11x1': '',
    'depthwise in stages.1': 'bc',
    'depthwise>=7 in stages.*.x': 'ab',
    'depthwise in *.y': 'c',
    'depthwise in stages': 'abcd',
    'depthwise in stage': '',
    'conv': 'ef',
    'conv==3x3': 'e',
    'conv in stages.2': 'f',
    'conv>=7': '',
}


@pytest.mark.parametrize('text', PATTERNS)
def test_patterns(text):
    layers = dict(
        a=(depthwise(2, 7), ['stages.0.x']),
        b=(depthwise(2, 7), ['spare', 'stages.1.x.conv']),
        c=(depthwise(2, (1, 11)), ['stages.1.y']),
        d=(depthwise(2, 3), ['stages.10.z']),
        e=(nn.Conv2d(2, 4, 3), ['stem']),
        f=(nn.Conv2d(4, 4, 1, groups=2), ['stages.2.conv']),
    )
    pattern = parse_pattern(text)
    found = ''.join(key for key, (layer, names) in layers.items() if pattern.matches(layer, names))
    assert found == PATTERNS[text]


def tied(net):
    net.head[0] = depthwise(6, 7)
    net.head[0].weight = net.mixers[0].weight


def hooked(net):
    net.mixers[0].register_forward_hook(lambda *_: None)


def parametrised(net):
    parametrizations.weight_norm(net.mixers[0])


def other(**options):
    channels = options.pop('channels', (6, 6))
    sizes = dict(kernel_size=7, padding=3, groups=6)

    def change(net):
        net.mixers[0] = nn.Conv2d(*channels, **{**sizes, **options})

    return change


SEVEN = 'depthwise==7'
BAD = {
    'nothing matches': (
        None,
        {'depthwise>20': LARGER},
        r"'depthwise>20' matches nothing.*mixers.0",
    ),
    'no place': (None, {'depthwise in stem': LARGER}, "'depthwise in stem' matches nothing"),
    'form': (None, {'dense>=7': LARGER}, "pattern 'dense>=7' is not of the form"),
    'no size': (None, {'depthwise>=': LARGER}, 'is not of the form'),
    'two sizes': (None, {'depthwise>=7x7': LARGER}, 'is not of the form'),
    'pattern': (None, {7: LARGER}, 'pattern 7 is not of the form'),
    'no rules': (None, {}, 'there are no rules'),
    'no type': (None, {SEVEN: dict(kernel_size=9)}, r'expected dict\(type='),
    'no dict': (None, {SEVEN: 'mmlk.RecConv2d'}, r'expected dict\(type='),
    'type': (
        None,
        {SEVEN: dict(type='mmlk.DCLSDepthWiseConv2d')},
        "unknown type 'mmlk.DCLSDepthWiseConv2d', did you mean 'DCLSDepthwiseConv2d'",
    ),
    'option': (None, {SEVEN: dict(LARGER, stride=2)}, "the option 'stride', it has kernel_size"),
    'option missing': (None, {SEVEN: dict(type='DepthwiseConv2d')}, 'mixers.0 .*kernel_size'),
    'option wrong': (
        None,
        {SEVEN: dict(LARGER, kernel_size=8)},
        'mixers.0 .*kernel_size 8 must be odd',
    ),
    'version': (
        None,
        {SEVEN: dict(type='mmlk.DCLSDepthwiseConv2d', version='v9')},
        "mixers.0 .*'v9' is not one of",
    ),
    'conflict': (
        None,
        {'depthwise>=7': LARGER, 'depthwise==1x11': LARGER},
        "'depthwise>=7' and 'depthwise==1x11' both name mixers.2",
    ),
    'few channels': (
        None,
        {SEVEN: dict(type='mmlk.InceptionDWConv2d')},
        r'mixers.0 \(6 channels, 7x7\) cannot become .*branch_ratio 0.125 of 6 channels',
    ),
    'channels': (other(channels=(6, 12)), {SEVEN: LARGER}, 'it makes 12 channels of 6'),
    'stride': (
        other(stride=2, bias=False),
        {SEVEN: EVERY['recursion']},
        r'stride \(2, 2\), which mmlk.RecConv2d has not',
    ),
    'bias': (None, {SEVEN: EVERY['recursion']}, 'it has a bias, which mmlk.RecConv2d has not'),
    'padding': (other(padding=0), {SEVEN: LARGER}, r'padding is \(0, 0\), \(3, 3\) would keep'),
    'padding mode': (other(padding_mode='reflect'), {SEVEN: LARGER}, "padding_mode is 'reflect'"),
    'even': (other(kernel_size=8), {'depthwise==8': LARGER}, r'kernel \(8, 8\) is even'),
    'meta': (other(device='meta'), {SEVEN: LARGER}, 'its weights are on meta'),
    'tied': (
        tied,
        {'depthwise in head': LARGER},
        'head.0 .*another module has the same parameters',
    ),
    'hooks': (hooked, {SEVEN: LARGER}, 'it has hooks'),
    'parametrised': (parametrised, {SEVEN: LARGER}, 'its parameters are parametrised'),
}


@pytest.mark.parametrize('inplace', (False, True))
@pytest.mark.parametrize('case', BAD)
def test_bad_input_is_one_error_and_changes_nothing(case, inplace, net):
    change, rules, message = BAD[case]
    if change is not None:
        change(net)
    before = list(net.modules())
    rules = {'depthwise==5': LARGER, **rules} if rules and 'tied' not in case else rules
    with pytest.raises(ValueError, match=message) as caught:
        mmlk.convert(net, rules, inplace=inplace)
    assert str(caught.value).startswith('convert: ')
    assert list(net.modules()) == before


def test_the_convolution_itself_is_refused():
    with pytest.raises(ValueError, match='it is the whole model'):
        mmlk.convert(depthwise(4, 7), {'depthwise': LARGER})
    with pytest.raises(ValueError, match='of the network: none'):
        mmlk.convert(nn.Conv2d(1, 4, 7), {'depthwise': LARGER})
