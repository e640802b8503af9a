"""What a DCLS layer keeps and shares: constructed kernels in eval mode, positions between layers."""

import copy
import io
import itertools

import pytest
import torch
from torch import nn

from mmlk.ops import (
    DCLSConv1d,
    DCLSConv2d,
    DCLSConv3d,
    DCLSDepthwiseConv2d,
    DepthwiseConv2d,
    dcls_kernel2d,
)
from tests.cases import TOLERANCE, assert_close


def pair_of_layers(version='gauss'):
    owner, follower = (DCLSDepthwiseConv2d(4, 3, 5, version=version) for _ in range(2))
    follower.share_positions(owner)
    return nn.ModuleList([owner, follower])


def fresh_kernel(layer):
    return dcls_kernel2d(
        layer.weight, layer.P, layer.SIG, kernel_size=layer.kernel_size, version=layer.version
    )


@torch.no_grad()
def test_eval_keeps_the_kernel_and_train_does_not():
    layer = DCLSDepthwiseConv2d(4, 3, 5)
    assert layer.kernel() is not layer.kernel()
    layer.eval()
    assert layer.kernel() is layer.kernel()
    assert layer.kernel(torch.float64).dtype == torch.float64


def test_a_gradient_is_never_lost_to_the_kept_kernel():
    layer = DCLSDepthwiseConv2d(4, 3, 5).eval()
    with torch.no_grad():
        layer.kernel()
    layer(torch.randn(1, 4, 8, 8)).sum().backward()
    assert layer.P.grad.abs().sum() > 0
    layer.requires_grad_(False)
    assert layer.kernel() is layer.kernel()


CHANGES = {
    'load': lambda layer: layer.load_state_dict(
        {key: value + 0.3 for key, value in layer.state_dict().items()}
    ),
    'assign': lambda layer: layer.load_state_dict(
        {key: value + 0.3 for key, value in layer.state_dict().items()}, assign=True
    ),
    'in place': lambda layer: layer.P.add_(0.3),
    'replaced data': lambda layer: setattr(layer.P, 'data', layer.P.data + 0.3),
    'averaged weights': lambda layer: (layer.P.data.add_(0.3), layer.eval()),
    'optimizer': lambda layer: (
        [setattr(p, 'grad', torch.ones_like(p)) for p in layer.parameters()],
        torch.optim.SGD(layer.parameters(), lr=0.3).step(),
    ),
    'clamp': lambda layer: (layer.P.mul_(50), layer.clamp_parameters()),
    'dtype': lambda layer: layer.double(),
    'train and back': lambda layer: (layer.train(), layer.P.data.add_(0.3), layer.eval()),
}


@pytest.mark.parametrize('change', CHANGES)
@torch.no_grad()
def test_kept_kernel_follows_every_change(change):
    layer = DCLSDepthwiseConv2d(4, 3, 5).eval()
    before = layer.kernel()
    CHANGES[change](layer)
    assert torch.equal(layer.kernel(), fresh_kernel(layer))
    assert not torch.equal(layer.kernel(), before) or layer.weight.dtype == torch.float64


@torch.no_grad()
def test_kept_kernel_follows_the_owner_of_the_positions():
    owner, follower = pair_of_layers().eval()
    follower.kernel()
    owner.P.add_(0.4)
    assert torch.equal(follower.kernel(), fresh_kernel(follower))


@torch.no_grad()
def test_kept_kernel_is_neither_copied_nor_pickled():
    layer = DCLSDepthwiseConv2d(4, 3, 5).eval()
    layer.kernel()
    assert copy.deepcopy(layer)._kept is None
    buffer = io.BytesIO()
    torch.save(layer, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    assert loaded._kept is None and torch.equal(loaded.kernel(), layer.kernel())


def test_inference_mode_parameters_work():
    with torch.inference_mode():
        layer = DCLSDepthwiseConv2d(4, 3, 5).eval()
        assert torch.equal(layer.kernel(), fresh_kernel(layer))


def test_shared_positions_are_one_parameter_with_two_keys():
    layers = pair_of_layers()
    owner, follower = layers
    assert follower.P is owner.P and follower.SIG is owner.SIG
    assert [name for name, _ in layers.named_parameters()] == [
        '0.weight',
        '0.P',
        '0.SIG',
        '0.bias',
        '1.weight',
        '1.bias',
    ]
    assert list(layers.state_dict()) == [
        f'{i}.{name}' for i in (0, 1) for name in ('weight', 'P', 'SIG', 'bias')
    ]
    storages = {value.untyped_storage().data_ptr() for value in layers.state_dict().values()}
    assert len(storages) == 8, 'safetensors refuses aliases'


@pytest.mark.parametrize('assign', [False, True])
def test_loading_keeps_the_sharing_and_the_last_key_counts(assign):
    layers = pair_of_layers()
    state = layers.state_dict()
    state['1.P'] = state['1.P'] + 1
    want = state['1.P'].clone()
    assert layers.load_state_dict(state, strict=True, assign=assign) == ([], [])
    assert layers[1].P is layers[0].P and isinstance(layers[0].P, nn.Parameter)
    assert torch.equal(layers[0].P, want)


def test_wrong_shape_under_a_shared_key_is_reported():
    layers = pair_of_layers()
    state = layers.state_dict()
    state['1.P'] = state['1.P'][..., :2]
    with pytest.raises(RuntimeError, match='size mismatch for 1.P'):
        layers.load_state_dict(state)


def test_copies_share_among_themselves_and_moves_keep_the_sharing():
    layers = pair_of_layers()
    clone = copy.deepcopy(layers).double()
    assert clone[1].P is clone[0].P and clone[1].P is not layers[0].P
    assert clone[1].P.dtype == torch.float64 and layers[1].P.dtype == torch.float32
    meta = copy.deepcopy(layers).to('meta').to_empty(device='cpu')
    assert meta[1].P is meta[0].P


def test_gradients_of_both_layers_meet_in_the_shared_tensor():
    owner, follower = pair_of_layers()
    x = torch.randn(1, 4, 8, 8)
    (one,) = torch.autograd.grad(owner(x).sum(), owner.P)
    (two,) = torch.autograd.grad(follower(x).sum(), owner.P)
    (owner(x).sum() + follower(x).sum()).backward()
    assert_close('sum', owner.P.grad, one + two, TOLERANCE[torch.float32][1])


def test_sharing_asks_for_equal_layers():
    with pytest.raises(ValueError, match='share_positions: positions, window and version'):
        DCLSDepthwiseConv2d(4, 3, 5).share_positions(DCLSDepthwiseConv2d(4, 3, 7))


def test_clamp_bounds_each_component_by_the_axis_it_drives():
    for version, limits in (('v0', (2, 4)), ('v1', (4, 2))):
        layer = DCLSConv2d(2, 2, 3, padding=(2, 4), dilated_kernel_size=(5, 9), version=version)
        with torch.no_grad():
            layer.P.mul_(1000)
        layer.clamp_parameters()
        assert tuple(layer.P.detach().abs().amax((1, 2, 3)).tolist()) == limits


@pytest.mark.parametrize('version', ['v0', 'gauss'])
@pytest.mark.parametrize(('stride', 'bias'), [(1, True), (2, False)])
@torch.no_grad()
def test_deploy_form_is_a_plain_convolution_with_the_same_output(version, stride, bias):
    layer = DCLSDepthwiseConv2d(4, 3, 5, stride=stride, bias=bias, version=version).eval()
    plain, x = layer.switch_to_deploy(), torch.randn(2, 4, 9, 7)
    assert isinstance(plain, DepthwiseConv2d) and isinstance(plain, nn.Conv2d)
    assert torch.equal(plain(x), layer(x))
    by_torch = nn.functional.conv2d(x, plain.weight, plain.bias, stride, 2, 1, 4)
    assert_close('conv2d', plain(x), by_torch, TOLERANCE[torch.float32][0])


@pytest.mark.parametrize(
    'settings',
    [
        dict(padding='same', dilated_kernel_size=7, groups=6),
        dict(padding=(1, 2), stride=(2, 1), dilated_kernel_size=(4, 5)),
        dict(padding=2, dilated_kernel_size=5, padding_mode='reflect', groups=3),
        dict(padding=3, dilated_kernel_size=7, groups=6, stride=2),
    ],
    ids=lambda settings: '-'.join(map(str, settings.values())),
)
@torch.no_grad()
def test_general_layer_equals_a_plain_one_with_its_kernel(settings):
    layer = DCLSConv2d(6, 6, 4, **settings)
    plain = nn.Conv2d(6, 6, settings.pop('dilated_kernel_size'), **settings)
    plain.weight.copy_(layer.kernel())
    plain.bias.copy_(layer.bias)
    x = torch.randn(2, 6, 11, 10)
    assert_close('output', layer(x), plain(x), TOLERANCE[torch.float32][0])


def bilinear(layer):
    """Kernel of version v0, cell by cell from its definition, in float64."""
    height, width = layer.kernel_size
    weight, positions = layer.weight.double(), layer.P.double()
    cells = torch.zeros(*weight.shape[:2], height, width, dtype=torch.float64)
    for index in itertools.product(*map(range, weight.shape)):
        row, column = (
            float(axis[index]) + size // 2 for axis, size in zip(positions, (height, width))
        )
        for a, b in itertools.product(range(height), range(width)):
            share = max(0.0, 1 - abs(a - row)) * max(0.0, 1 - abs(b - column))
            cells[(*index[:2], a, b)] += share * weight[index]
    return cells


@pytest.mark.parametrize('dtype', (torch.float32, torch.float64), ids=str)
@pytest.mark.parametrize(
    'options', (dict(), dict(stride=2, bias=False), dict(groups=2, stride=(1, 2))), ids=str
)
@torch.no_grad()
def test_dense_layer_and_its_deploy_form_are_a_convolution_with_the_defined_kernel(options, dtype):
    torch.manual_seed(0)
    layer = DCLSConv2d(4, 6, 5, padding=(3, 2), dilated_kernel_size=(7, 5), **options).to(dtype)
    layer.P.mul_(4)
    layer.clamp_parameters()
    x, bias = torch.randn(2, 4, 11, 9, dtype=dtype), layer.bias
    want = nn.functional.conv2d(
        x.double(),
        bilinear(layer),
        None if bias is None else bias.double(),
        options.get('stride', 1),
        (3, 2),
        1,
        options.get('groups', 1),
    )
    plain = layer.eval().switch_to_deploy()
    assert type(plain) is nn.Conv2d and plain.weight.dtype == dtype and not plain.training
    assert_close('layer', layer(x), want, TOLERANCE[dtype][0])
    assert_close('deploy', plain(x), want, TOLERANCE[dtype][0])


DEPLOYED = {
    'sequence': (lambda: DCLSConv1d(4, 6, 3, padding=2, dilated_kernel_size=5), nn.Conv1d),
    'volume': (lambda: DCLSConv3d(4, 2, 3, 2, 'valid', dilated_kernel_size=3), nn.Conv3d),
    'reflected': (
        lambda: DCLSConv2d(
            4, 4, 3, padding=3, dilated_kernel_size=7, groups=4, padding_mode='reflect'
        ),
        nn.Conv2d,
    ),
    'depthwise': (
        lambda: DCLSConv2d(4, 4, 3, padding=3, dilated_kernel_size=7, groups=4, bias=False),
        DepthwiseConv2d,
    ),
}


@pytest.mark.parametrize('case', DEPLOYED)
@torch.no_grad()
def test_deploy_form_of_every_general_layer(case):
    make, kind = DEPLOYED[case]
    layer = make()
    plain, x = layer.switch_to_deploy(), torch.randn(1, 4, *[8] * layer.dims)
    assert type(plain) is kind and plain.training
    assert_close('map', plain(x), layer(x), TOLERANCE[torch.float32][0])


def test_every_layer_declares_its_hook_and_what_does_not_decay():
    for kind in (DCLSConv1d, DCLSConv2d, DCLSConv3d, DCLSDepthwiseConv2d):
        assert kind.no_weight_decay == ('P', 'SIG')
        assert kind.required_hooks == dict(dcls_clamp=dict(type='mmlk.DCLSClampHook'))
