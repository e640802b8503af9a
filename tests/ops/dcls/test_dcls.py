"""Kernels and layers with learnable spacings against the authors' recorded values and closed forms."""

import math

import pytest
import torch
import torch.nn.functional as F

from mmlk.ops import (
    DCLSConv1d,
    DCLSConv2d,
    DCLSConv3d,
    DCLSDepthwiseConv2d,
    dcls_kernel1d,
    dcls_kernel1d_reference,
    dcls_kernel2d,
    dcls_kernel2d_reference,
    dcls_kernel3d,
    dcls_kernel3d_reference,
    explain,
    repulsive_loss,
)
from mmlk.ops.dcls import construct as dcls_construct
from mmlk.ops.dcls.construct import driven_axes
from tests.cases import GOLDEN_OPERATOR, TOLERANCE, assert_close
from tests.golden_weights import golden_input, load_golden, sampled


@pytest.fixture(autouse=True, params=['compiled', 'torch'])
def _loops(request, monkeypatch):
    monkeypatch.setenv('MMLK_JIT', '1' if request.param == 'compiled' else '0')


FILES = (
    'construct1d',
    'construct2d-v0',
    'construct2d-v1',
    'construct2d-max',
    'construct2d-gauss',
    'construct3d',
)
RECORDS = {name: load_golden(f'dcls_convnext/operator-{name}')['cases'] for name in FILES}
CASES = [
    pytest.param(
        record,
        id='-'.join(
            (
                record['version'],
                'x'.join(map(str, record['dilated_kernel_size'])),
                record['positions'],
                str(record.get('sigma', 'plain')),
                str(i),
            )
        ),
    )
    for name in FILES
    for i, record in enumerate(RECORDS[name])
]
KERNELS = dict(
    separable=(dcls_kernel1d, dcls_kernel2d, dcls_kernel3d),
    reference=(dcls_kernel1d_reference, dcls_kernel2d_reference, dcls_kernel3d_reference),
)
LAYERS = {
    name: load_golden(f'dcls_convnext/operator-{name}')['cases']
    for name in ('conv2d', 'conv-other')
}
VERSIONS = ('v0', 'v1', 'max', 'gauss')


def tensor(record, dtype=torch.float32):
    return torch.tensor(record['data'], dtype=dtype).reshape(record['shape'])


def arguments(version, shape=(3, 2, 4), dims=2, spread=2.0, dtype=torch.float32, seed=0):
    """Weight, positions and, where the version has it, sigma, away from integers."""
    generator = torch.Generator().manual_seed(seed)
    draw = [
        torch.randn(size, generator=generator, dtype=torch.float64)
        for size in (shape, (dims, *shape), (dims, *shape))
    ]
    draw[1] = (draw[1] * spread).round(decimals=1) + 0.03
    count = 3 if version in ('max', 'gauss') else 2
    return [each.to(dtype).requires_grad_() for each in draw[:count]]


def profiles_everywhere(monkeypatch):
    """Take the route of accelerators."""
    monkeypatch.setattr(dcls_construct, '_sampling_grid', lambda p, kernel_size, version: None)


def recentred(record, dtype):
    """Positions that undo the official offset by the component's own side instead of its axis'."""
    sizes, dims = record['dilated_kernel_size'], len(record['dilated_kernel_size'])
    axes = driven_axes(record['version'], dims)
    shift = [sizes[d] // 2 - sizes[axes[d]] // 2 for d in range(dims)]
    return tensor(record['P'], dtype) + torch.tensor(shift, dtype=dtype).view(-1, 1, 1, 1)


@pytest.mark.parametrize('route', ['separable', 'profiles', 'reference'])
@pytest.mark.parametrize('record', CASES)
def test_kernel_and_gradients_match_the_authors(record, route, monkeypatch):
    if route == 'profiles':
        profiles_everywhere(monkeypatch)
    build = KERNELS.get(route, KERNELS['separable'])[len(record['dilated_kernel_size']) - 1]
    names = [name for name in ('weight', 'P', 'SIG') if name in record]
    inputs = [
        recentred(record, torch.float32) if name == 'P' else tensor(record[name]) for name in names
    ]
    inputs = [each.requires_grad_() for each in inputs]
    kernel = build(*inputs, kernel_size=record['dilated_kernel_size'], version=record['version'])
    gradients = torch.autograd.grad(kernel, inputs, golden_input(kernel.shape, seed=1))
    keys = ['kernel', *(f'grad_{name}' for name in names)]
    for key, got, noise in zip(
        keys, (kernel, *gradients), record['float64_max_abs_diff'], strict=True
    ):
        # Sums that nearly cancel are known to the recorded distance from float64 only.
        want = tensor(record[key])
        slack = 4 * noise / max(want.abs().max().item(), 1e-6)
        assert_close(key, got, want, GOLDEN_OPERATOR + slack)


@pytest.mark.parametrize('route', ['sampling', 'profiles'])
@pytest.mark.parametrize('version', VERSIONS)
@pytest.mark.parametrize(
    ('dims', 'size'),
    [(1, (7,)), (2, (5, 9)), (2, (17, 17)), (2, (6, 3)), (3, (3, 5, 4)), (3, (5, 5, 5))],
)
def test_separable_equals_the_definition_in_float64(version, dims, size, route, monkeypatch):
    if route == 'profiles':
        profiles_everywhere(monkeypatch)
    monkeypatch.setattr(dcls_construct, '_ROWS', 4)
    inputs = arguments(version, dims=dims, spread=3.0, dtype=torch.float64)
    kernel = KERNELS['separable'][dims - 1](*inputs, kernel_size=size, version=version)
    want = KERNELS['reference'][dims - 1](*inputs, kernel_size=size, version=version)
    upstream = golden_input(want.shape).double()
    output, parameter = TOLERANCE[torch.float64]
    assert_close('kernel', kernel, want, output)
    for i, (got, expected) in enumerate(
        zip(
            torch.autograd.grad(kernel, inputs, upstream),
            torch.autograd.grad(want, inputs, upstream),
            strict=True,
        )
    ):
        assert_close(f'gradient {i}', got, expected, parameter)


@pytest.mark.parametrize('size', [(3, 5), (9, 9), (17, 17), (33, 3)])
@pytest.mark.parametrize('version', ['v0', 'v1'])
def test_sampling_follows_the_definition_at_integers_and_borders(version, size, monkeypatch):
    weight, positions = arguments(version, shape=(3, 2, 40), spread=4.0, dtype=torch.float64)
    with torch.no_grad():
        positions[..., ::2] = positions[..., ::2].round()
        for component, axis in enumerate(driven_axes(version, 2)):
            positions[component].clamp_(-(size[axis] // 2), size[axis] // 2)
    assert (
        dcls_construct._sampling_grid(positions.detach().flatten(1, 2), size, version) is not None
    )
    kernel = dcls_kernel2d(weight, positions, kernel_size=size, version=version)
    want = dcls_kernel2d_reference(weight, positions, kernel_size=size, version=version)
    output, parameter = TOLERANCE[torch.float64]
    assert_close('kernel', kernel, want, output)
    upstream = golden_input(want.shape).double()
    for got, expected in zip(
        torch.autograd.grad(kernel, (weight, positions), upstream),
        torch.autograd.grad(want, (weight, positions), upstream),
        strict=True,
    ):
        assert_close('gradient', got, expected, parameter)


@pytest.mark.parametrize(
    ('version', 'size', 'position'),
    [
        ('max', (5, 5), 0.0),
        ('v0', (7, 7), 0.0),
        ('v0', (4, 5), 0.0),
        ('v0', (1, 5), 0.0),
        ('v0', (5, 5), math.nan),
        ('v0', (5, 5), -math.inf),
        ('v1', (5, 9), 2.5),
    ],
)
def test_sampling_leaves_to_the_profiles_what_it_cannot_do(version, size, position):
    p = torch.zeros(2, 3, 4)
    p[1, 2, 1] = position
    assert dcls_construct._sampling_grid(p, size, version) is None


@pytest.mark.parametrize('version', VERSIONS)
def test_element_at_zero_sits_in_the_centre_of_a_non_square_window(version):
    weight, positions = torch.ones(1, 1, 1), torch.zeros(2, 1, 1, 1)
    sigma = torch.zeros(2, 1, 1, 1) if version in ('max', 'gauss') else None
    kernel = dcls_kernel2d(weight, positions, sigma, kernel_size=(5, 9), version=version)[0, 0]
    assert kernel.flatten().argmax() == 2 * 9 + 4
    assert torch.equal(kernel, kernel.flip(0, 1))
    assert kernel.sum().item() == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize(('version', 'row_moves'), [('v0', True), ('v1', False), ('gauss', False)])
def test_component_0_drives_rows_for_v0_and_columns_otherwise(version, row_moves):
    weight, positions = torch.ones(1, 1, 1), torch.tensor([2.0, 0.0]).view(2, 1, 1, 1)
    sigma = torch.zeros(2, 1, 1, 1) if version == 'gauss' else None
    kernel = dcls_kernel2d(weight, positions, sigma, kernel_size=7, version=version)[0, 0]
    assert tuple(divmod(kernel.flatten().argmax().item(), 7)) == ((5, 3) if row_moves else (3, 5))


@pytest.mark.parametrize('route', ['sampling', 'profiles'])
def test_slopes_at_integers_and_at_the_border(route, monkeypatch):
    if route == 'profiles':
        profiles_everywhere(monkeypatch)
    upstream = golden_input((1, 1, 7))
    for position in (-3.0, -1.0, 0.0, 2.0, 3.0):
        p = torch.full((1, 1, 1, 1), position, requires_grad=True)
        ramp = F.pad(upstream, (0, 1))[0, 0]
        at = int(position) + 3
        bilinear = dcls_kernel1d(torch.ones(1, 1, 1), p, kernel_size=7, version='v0')
        (slope,) = torch.autograd.grad(bilinear, p, upstream)
        assert slope.item() == pytest.approx((ramp[at + 1] - ramp[at]).item(), rel=1e-6)
        triangle = dcls_kernel1d(torch.ones(1, 1, 1), p, kernel_size=7, version='v1')
        assert torch.autograd.grad(triangle, p, upstream)[0].item() == 0


@pytest.mark.parametrize('version', VERSIONS)
def test_default_width_of_max_can_train(version):
    layer = DCLSDepthwiseConv2d(4, 3, 5, version=version)
    layer(torch.randn(1, 4, 8, 8)).square().sum().backward()
    for parameter in layer.parameters():
        assert parameter.grad.abs().sum() > 0


def test_positions_that_are_not_finite_show_in_the_kernel():
    weight, positions = torch.ones(2, 1, 3), torch.zeros(2, 2, 1, 3)
    positions[0, 1, 0, 2] = math.nan
    kernel = dcls_kernel2d(weight, positions, kernel_size=5)
    assert kernel[0].isfinite().all() and kernel[1].isnan().any()


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_low_precision_parameters_are_constructed_in_float32(dtype):
    weight, positions = arguments('v0', spread=3.0)
    low = [each.detach().to(dtype).requires_grad_() for each in (weight, positions)]
    kernel = dcls_kernel2d(*low, kernel_size=17)
    assert kernel.dtype == torch.float32
    want = dcls_kernel2d_reference(*(each.double() for each in low), kernel_size=17)
    assert_close('kernel', kernel, want, TOLERANCE[torch.float32][0])
    kernel.sum().backward()
    assert all(each.grad.dtype == dtype for each in low)


def test_autocast_leaves_the_construction_alone():
    weight, positions = arguments('gauss')[:2]
    sigma = arguments('gauss')[2]
    with torch.autocast('cpu', dtype=torch.bfloat16):
        inside = dcls_kernel2d(weight, positions, sigma, kernel_size=7, version='gauss')
    outside = dcls_kernel2d(weight, positions, sigma, kernel_size=7, version='gauss')
    assert inside.dtype == torch.float32 and torch.equal(inside, outside)
    layer, x = DCLSDepthwiseConv2d(4, 3, 5), torch.randn(1, 4, 9, 9)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    assert_close('layer', y, layer(x), TOLERANCE[torch.bfloat16][0])


@pytest.mark.parametrize('version', VERSIONS)
def test_registration(version):
    inputs = arguments(version, shape=(2, 1, 3), dtype=torch.float64)
    sigma = inputs[2] if len(inputs) == 3 else None
    torch.library.opcheck(torch.ops.mmlk.dcls_kernel.default, (*inputs[:2], sigma, [5, 5], version))

    def build(*each):
        return dcls_kernel2d(*each, kernel_size=5, version=version)

    assert torch.autograd.gradcheck(build, inputs)
    first, second = build(*inputs), build(*inputs)
    assert torch.equal(first, second)


@pytest.mark.slow
def test_compiles_as_one_graph_and_trains():
    layer = DCLSDepthwiseConv2d(4, 3, 5, version='gauss')
    follower = DCLSDepthwiseConv2d(4, 3, 5, version='gauss')
    follower.share_positions(layer)
    both = torch.nn.Sequential(layer, follower)
    x = torch.randn(1, 4, 9, 9)
    want = torch.autograd.grad(both(x).square().sum(), layer.P)[0]
    got = torch.autograd.grad(
        torch.compile(both, fullgraph=True, backend='aot_eager')(x).square().sum(), layer.P
    )[0]
    assert_close('gradient', got, want, TOLERANCE[torch.float32][1])


def test_export_holds_plain_operators():
    layer = DCLSDepthwiseConv2d(4, 3, 5).eval()
    x = torch.randn(1, 4, 9, 9)
    program = torch.export.export(layer, (x,))
    assert not any('mmlk' in str(node.target) for node in program.graph.nodes)
    assert_close('export', program.module()(x), layer(x), TOLERANCE[torch.float32][0])


def test_explain_and_forced_backend():
    weight, positions = arguments('v0')
    assert 'separable: used' in explain(dcls_kernel2d, weight, positions, kernel_size=5)
    got = dcls_kernel2d(weight, positions, kernel_size=5, backend='reference')
    assert torch.equal(got, dcls_kernel2d_reference(weight, positions, kernel_size=5))
    with pytest.raises(ValueError, match="unknown backend 'cuda'"):
        dcls_kernel2d(weight, positions, kernel_size=5, backend='cuda')


def plain_kernel(record):
    """Kernel of a layer that spreads elements along one axis only, by way of the 1-D operator."""
    weight, size = tensor(record['weight']), record['kwargs']['dilated_kernel_size']
    pairs = (weight.shape[0], -1, weight.shape[-1])
    sigma = tensor(record['SIG']).reshape(1, *pairs) if 'SIG' in record else None
    # One of the authors' classes has a wider least Gaussian, 1 instead of 0.27.
    wide = record['class'] == 'Dcls2_1d' and record['version'] == 'gauss'
    sigma = sigma.abs() + 0.73 if wide else sigma
    kernel = dcls_kernel1d(
        weight.reshape(pairs),
        tensor(record['P']).reshape(1, *pairs),
        sigma,
        kernel_size=size,
        version=record['version'],
    )
    return kernel.reshape(*weight.shape[:-1], -1)


LAYER_CLASSES = dict(Dcls1d=DCLSConv1d, Dcls2d=DCLSConv2d, Dcls3d=DCLSConv3d)
GENERAL = [
    pytest.param(record, id=f'{record["class"]}-{record["version"]}-{i}')
    for cases in LAYERS.values()
    for i, record in enumerate(cases)
    if record['class'] in LAYER_CLASSES
]


@pytest.mark.parametrize('record', GENERAL)
def test_layer_matches_the_authors(record):
    layer = LAYER_CLASSES[record['class']](**record['kwargs'], version=record['version'])
    names = [key for key, _, _ in record['state_dict']]
    layer.load_state_dict({key: tensor(record[key]) for key in names}, strict=True)
    x = golden_input(record['input_shape']).requires_grad_()
    y = layer(x)
    (y * golden_input(y.shape, seed=1)).sum().backward()
    results = dict(
        out=y,
        kernel=layer.kernel(),
        grad_input=x.grad,
        **{f'grad_{key}': layer.get_parameter(key).grad for key in names},
    )
    for key, value in results.items():
        got, want = sampled(value, record[key])
        assert_close(key, got, want, 2 * GOLDEN_OPERATOR)


@pytest.mark.parametrize(
    'record',
    [
        pytest.param(record, id=f'{record["class"]}-{record["version"]}-{i}')
        for i, record in enumerate(LAYERS['conv-other'])
        if record['class'] in ('Dcls2dK1d', 'Dcls3_1d', 'Dcls2_1d')
    ],
)
def test_one_axis_layers_follow_from_the_1d_kernel(record):
    kernel, bias = plain_kernel(record), tensor(record['bias'])
    x, settings = golden_input(record['input_shape']), record['kwargs']
    if record['class'] == 'Dcls2dK1d':
        kernel = kernel.unsqueeze(3 if settings['flat_dim'] == 0 else 2)
    convolve = F.conv3d if record['class'] == 'Dcls3_1d' else F.conv2d
    y = convolve(
        x,
        kernel,
        bias,
        settings.get('stride', 1),
        settings.get('padding', 0),
        1,
        settings.get('groups', 1),
    )
    got, want = sampled(y, record['out'])
    assert_close('out', got, want, 2 * GOLDEN_OPERATOR)


@pytest.mark.parametrize(
    'record',
    [
        pytest.param(record, id=str(i))
        for i, record in enumerate(load_golden('dcls_convnext/operator-repulsion')['cases'])
    ],
)
def test_repulsive_loss_matches_the_authors(record):
    positions = [tensor(each).requires_grad_() for each in record['P']]
    loss = torch.stack([repulsive_loss(each) for each in positions]).mean()
    assert loss.item() == pytest.approx(record['loss_float64'], rel=GOLDEN_OPERATOR)
    for got, want in zip(torch.autograd.grad(loss, positions), record['grad_P'], strict=True):
        # The recorded gradients come from cdist, whose matrix-product path loses digits.
        assert_close('gradient', got, tensor(want), 20 * GOLDEN_OPERATOR)


def test_repulsive_loss_of_coincident_elements_and_of_one_element():
    together = torch.zeros(2, 1, 1, 3, requires_grad=True)
    loss = repulsive_loss(together)
    assert loss.item() == 1
    assert torch.equal(torch.autograd.grad(loss, together)[0], torch.zeros(2, 1, 1, 3))
    assert repulsive_loss(torch.ones(2, 1, 1, 1)).item() == 0


BAD_CALLS = [
    (dict(version='v2'), "version 'v2' is not one of v0, v1, max, gauss"),
    (dict(kernel_size=0), 'kernel_size 0 is not a positive integer'),
    (dict(kernel_size=(5, 5, 5)), r'kernel_size \(5, 5, 5\)'),
    (dict(weight=torch.ones(2, 1, 0), positions=torch.ones(2, 2, 1, 0)), 'at least one element'),
    (dict(weight=torch.ones(2, 3)), r'\(2, 3\), expected floating point \(O, I, m\)'),
    (dict(positions=torch.ones(2, 2, 1, 4)), r'positions have shape \(2, 2, 1, 4\), expected'),
    (dict(sigma=torch.ones(2, 2, 1, 3)), "version 'v0' takes no sigma"),
    (dict(version='gauss'), "version 'gauss' needs sigma"),
    (dict(version='max', sigma=torch.ones(1, 2, 1, 3)), r'sigma has shape \(1, 2, 1, 3\)'),
]


@pytest.mark.parametrize(
    ('change', 'message'), BAD_CALLS, ids=[message for _, message in BAD_CALLS]
)
def test_bad_arguments_of_the_function_are_named(change, message):
    call = dict(weight=torch.ones(2, 1, 3), positions=torch.ones(2, 2, 1, 3), kernel_size=5)
    with pytest.raises(ValueError, match=f'dcls_kernel2d: .*{message}'):
        dcls_kernel2d(**{**call, **change})


@pytest.mark.parametrize(
    ('make', 'message'),
    [
        (lambda: DCLSDepthwiseConv2d(4, version='bilinear'), "version 'bilinear' is not one of"),
        (lambda: DCLSDepthwiseConv2d(4, kernel_size=8), r'kernel_size \(8, 8\) must be odd'),
        (lambda: DCLSDepthwiseConv2d(4, kernel_count=0), 'kernel_count 0 must be at least 1'),
        (lambda: DCLSConv2d(4, 6, 3, groups=4), 'groups 4 must divide'),
        (lambda: DCLSConv2d(4, 4, 3, dilated_kernel_size=(3, 3, 3)), r'kernel_size \(3, 3, 3\)'),
    ],
    ids=['version', 'even', 'count', 'groups', 'rank'],
)
def test_bad_arguments_of_the_layers_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
