"""Layers with learnable spacings in the place of convolutions that are not depthwise."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import resnet, resnet50

import mmlk
from mmlk.ops import DCLSConv2d, dcls_kernel2d_reference
from tests.cases import TOLERANCE, assert_close
from tests.surgery.networks import with_scales

# Channels, kernel and options of a convolution, window of the new layer, its padding.
GEOMETRIES = {
    'plain': ((4, 6, 3), dict(padding=1), 7, (3, 3)),
    'steps, no bias': ((4, 6, 3), dict(padding=1, stride=2, bias=False), 7, (3, 3)),
    'groups': ((4, 6, 3), dict(padding=1, groups=2), 5, (2, 2)),
    'dilation': ((4, 4, 3), dict(padding=(2, 1), dilation=(2, 1)), 9, (4, 4)),
    'no padding': ((3, 4, 3), dict(), 7, (2, 2)),
    'much padding': ((3, 4, 3), dict(padding=4), 5, (5, 5)),
    'same': ((3, 4, (1, 5)), dict(padding='same', dilation=2), (3, 11), 'same'),
    'valid': ((3, 4, 3), dict(padding='valid'), 3, (0, 0)),
    'even': ((3, 4, 4), dict(padding=1, stride=2), 8, (3, 3)),
    'reflected': ((3, 4, 3), dict(padding=1, padding_mode='reflect'), 7, (3, 3)),
    'circular': ((3, 4, 3), dict(padding=1, padding_mode='circular'), 5, (2, 2)),
    'pointwise': ((5, 2, 1), dict(), 5, (2, 2)),
    'expanding': ((3, 6, 3), dict(padding=1, groups=3), 5, (2, 2)),
}


def layer_of(name):
    torch.manual_seed(0)
    arguments, options, _, _ = GEOMETRIES[name]
    return nn.Sequential(nn.Conv2d(*arguments, **options))


def elements(count, window, **options):
    return dict(type='mmlk.DCLSConv2d', kernel_count=count, dilated_kernel_size=window, **options)


def pattern(model):
    return 'depthwise' if model[0].groups == model[0].in_channels > 1 else 'conv'


@pytest.mark.parametrize('dtype', (torch.float32, torch.float64), ids=str)
@pytest.mark.parametrize('version', ('v0', 'v1'))
@pytest.mark.parametrize('name', GEOMETRIES)
def test_every_geometry_is_carried_over_exactly(name, version, dtype):
    model, (_, _, window, padding) = layer_of(name).to(dtype), GEOMETRIES[name]
    count = model[0].weight[0, 0].numel()
    done = mmlk.convert(model, {pattern(model): elements(count, window, version=version)})
    module = done.model[0]
    assert done.layers[0].residual == 0 and str(done).endswith('exact')
    assert type(module) is DCLSConv2d and module.padding == padding
    assert (module.bias is None) == (model[0].bias is None)
    x = torch.randn(2, model[0].in_channels, 14, 11, dtype=dtype)
    assert_close('map', done.model(x), model(x), {torch.float32: 1e-6, torch.float64: 1e-13}[dtype])


@pytest.mark.parametrize('version', ('v0', 'v1', 'max', 'gauss'))
def test_the_residual_is_that_of_the_new_kernel(version):
    model = layer_of('groups').double()
    done = mmlk.convert(model, {'conv': elements(4, 5, version=version)})
    module, kernel = done.model[0], F.pad(model[0].weight.detach(), (1, 1, 1, 1))
    made = dcls_kernel2d_reference(
        module.weight, module.P, module.SIG, kernel_size=5, version=version
    )
    residual = float((made.detach() - kernel).norm() / kernel.norm())
    assert residual == pytest.approx(done.layers[0].residual, rel=1e-9) and residual > 0.1


def test_few_elements_are_the_best_choice_of_taps():
    model = layer_of('plain')
    done = mmlk.convert(model, {'conv==3x3': elements(5, 7)})
    taps = model[0].weight.detach().double().flatten(2)
    kept = taps.square().sort(2, descending=True).values[..., :5].sum()
    want = ((taps.square().sum() - kept) / taps.square().sum()).sqrt()
    assert done.layers[0].residual == pytest.approx(float(want), rel=1e-9)
    module = done.model[0]
    assert torch.equal(module.P, module.P.round()) and module.P.abs().max() == 1


def test_many_rows_of_least_squares_are_as_few(monkeypatch):
    model, rule = layer_of('plain'), {'conv': elements(6, 5, version='gauss')}
    whole = mmlk.convert(model, rule).model[0]
    monkeypatch.setattr('mmlk.surgery.elements._ROWS', 7)
    torch.manual_seed(1)
    parts = mmlk.convert(model, rule).model[0]
    assert_close('weights', parts.weight, whole.weight, TOLERANCE[torch.float32][0])


def stages(kernel_size=3):
    """Two stages of equal layers, the first of which takes steps."""
    torch.manual_seed(0)
    padding = kernel_size // 2
    return nn.Sequential(
        nn.Conv2d(4, 4, kernel_size, 2, padding, bias=False),
        nn.Conv2d(4, 4, kernel_size, 1, padding, bias=False),
        nn.Conv2d(4, 6, kernel_size, 1, padding),
        nn.Conv2d(6, 6, kernel_size, 1, padding),
        nn.Conv2d(6, 6, kernel_size, 1, padding),
    )


def test_equal_layers_share_positions():
    model = stages()
    done = mmlk.convert(model, {'conv': elements(9, 5)}, share_positions=True)
    owners = [name for name, _ in done.model.named_parameters() if name.endswith('.P')]
    assert owners == ['0.P', '2.P', '3.P']
    assert done.model[1].P is done.model[0].P and done.model[4].P is done.model[3].P
    assert '4.P' in done.model.state_dict()
    assert [each.parameters[1] for each in done.layers] == [432, 144, 654, 978, 330]
    x = torch.randn(1, 4, 12, 10)
    assert_close('map', done.model(x), model(x), 1e-6)


def test_shared_positions_are_the_best_choice_for_all_layers():
    model = stages()
    done = mmlk.convert(model, {'conv': elements(4, 5)}, share_positions=True)
    taps = torch.stack([each.weight.detach().double().flatten(2) for each in model[3:]])
    subsets = torch.tensor(list(itertools.combinations(range(9), 4)))
    kept = taps.square()[..., subsets].sum(-1).sum(0)
    missed = taps.square().sum((0, 3)) - kept.max(-1).values
    got = sum(
        (each.residual * layer.weight.detach().double().norm()) ** 2
        for each, layer in zip(done.layers[3:], model[3:])
    )
    assert float(missed.sum()) == pytest.approx(float(got), rel=1e-9)


def test_rules_and_frozen_layers_share_apart():
    model = stages()
    model[4].requires_grad_(False)
    rules = {'conv in 0': elements(5, 5), 'conv in [1-4]': elements(5, 5)}
    done = mmlk.convert(model, rules, share_positions=True)
    assert all(each.owns_positions for each in done.model)


def test_without_their_weights_new_layers_are_as_their_class_makes_them():
    model = stages()
    torch.manual_seed(3)
    done = mmlk.convert(model, {'conv in [01]': elements(5, 7)}, carry_weights=False)
    torch.manual_seed(3)
    want = DCLSConv2d(4, 4, 5, padding=3, dilated_kernel_size=7, bias=False)
    assert torch.equal(done.model[0].weight, want.weight)
    assert torch.equal(done.model[0].P, want.P)
    assert [each.residual for each in done.layers] == [None, None]
    assert str(done).endswith('not carried over')


def parameters(count, shared):
    """Of ResNet-50 with ``count`` elements in each 3x3 kernel, in closed form."""
    blocks, pairs = (3, 4, 6, 3), [width * width for width in (64, 128, 256, 512)]
    kernels = sum(each * depth for each, depth in zip(pairs, blocks))
    positions = sum(pairs) if shared else kernels
    return 25_557_032 - 9 * kernels + count * (kernels + 2 * positions)


@pytest.mark.parametrize(
    ('count', 'shared', 'millions'), [(5, True, 24.0), (6, True, 26.0), (5, False, 33.1)]
)
def test_resnet50_has_the_parameters_of_the_experiment(count, shared, millions):
    """Shared positions and 5 or 6 elements are those next to ResNet-50's own 25.6 million."""
    with torch.device('meta'):
        model = resnet50()
    rules = {'conv==3x3 in layer*': elements(count, 7)}
    done = mmlk.convert(model, rules, carry_weights=False, share_positions=shared)
    found = sum(each.numel() for each in done.model.parameters())
    assert len(done.layers) == 16 and {each.device.type for each in done.model.parameters()} == {
        'meta'
    }
    assert found == parameters(count, shared) and round(found / 1e6, 1) == millions
    assert done.model(torch.empty(1, 3, 64, 64, device='meta')).shape == (1, 1000)


def test_resnet50_computes_the_same_with_nine_elements():
    torch.manual_seed(0)
    narrow = resnet.ResNet(resnet.Bottleneck, [3, 4, 6, 3], width_per_group=16)
    model = with_scales(narrow).eval()
    done = mmlk.convert(model, {'conv==3x3': elements(9, 7)})
    assert [each.residual for each in done.layers] == [0.0] * 16
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert_close('scores', done.model(x), model(x), 1e-6)


class Own(nn.Conv2d):
    """A convolution whose call may be another one."""


def subclass(model):
    model[3] = Own(6, 6, 3, padding=1)


LARGER = dict(type='mmlk.DepthwiseConv2d', kernel_size=9)
BAD = {
    'depthwise part': ({'conv': LARGER}, 'it is not depthwise, as mmlk.DepthwiseConv2d is'),
    'nothing': ({'conv>=7': elements(5, 7)}, 'matches nothing; other convolutions .*: 0 '),
    'no depthwise': ({'depthwise': LARGER}, 'matches nothing; depthwise convolutions .* none'),
    'no window': ({'conv': dict(type='mmlk.DCLSConv2d', kernel_count=5)}, 'dilated_kernel_size'),
    'three sides': ({'conv': elements(5, (7, 7, 7))}, r'kernel_size \(7, 7, 7\) is not'),
    'even': ({'conv': elements(5, 8)}, r'\(8, 8\) and the kernel of 3x3, .* must both be odd'),
    'count': ({'conv': elements(0, 7)}, 'kernel_count 0 must be at least 1'),
    'padding': (
        {'conv': elements(5, 7, padding=3)},
        "option 'padding', it has kernel_count, .* padding and bias are those of the layer",
    ),
    'version': ({'conv': elements(5, 7, version='v9')}, "'v9' is not one of"),
    'subclass': ({'conv': elements(5, 7)}, r'3 \(3x3\): it is a .*Own'),
}
CHANGES = {'subclass': subclass}


@pytest.mark.parametrize('case', BAD)
@pytest.mark.parametrize('inplace', (False, True))
def test_bad_input_is_one_error_and_changes_nothing(case, inplace):
    (rules, message), model = BAD[case], stages()
    CHANGES.get(case, lambda _: None)(model)
    before = list(model)
    with pytest.raises(ValueError, match=f'^convert: .*{message}'):
        mmlk.convert(model, rules, inplace=inplace)
    assert list(model) == before


def test_a_window_inside_the_kernel_keeps_its_centre_or_is_refused():
    model = stages(5)
    small = mmlk.convert(model, {'conv': elements(9, 3)}).model
    want = [F.pad(each.weight[..., 1:4, 1:4], (1, 1, 1, 1)) for each in model]
    for layer, kernel in zip(model, want):
        layer.weight.data = kernel.detach()
    x = torch.randn(1, 4, 12, 10)
    assert_close('map', small(x), model(x), 1e-6)
    with pytest.raises(
        ValueError, match=r'\(3, 3\) is smaller than the kernel of 5x5 by more than'
    ):
        mmlk.convert(nn.Sequential(nn.Conv2d(2, 2, 5)), {'conv': elements(5, 3)})


def test_positions_to_share_must_be_there():
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, groups=4))
    with pytest.raises(ValueError, match='^convert: share_positions is set, and no rule'):
        mmlk.convert(model, {'depthwise': LARGER}, share_positions=True)
    with pytest.raises(ValueError, match='its weights are on meta'):
        mmlk.convert(stages().to('meta'), {'conv': elements(5, 5)})
