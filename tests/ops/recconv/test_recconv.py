"""Recursive convolution: definition, authors' values, CPU backend, registration, errors."""

import logging

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from mmlk.ops import RecConv2d, explain, recconv2d, recconv2d_reference
from tests.cases import GOLDEN_OPERATOR, TOLERANCE, assert_close
from tests.golden_weights import golden_input, load_golden, load_golden_weights, sampled

GOLDENS = [
    (mode, index) for mode, count in (('bilinear', 11), ('nearest', 8)) for index in range(count)
]
SIZES = [(1, 1), (1, 7), (2, 2), (5, 3), (7, 7), (13, 9), (16, 16), (40, 24), (97, 131)]


def parameters(channels, kernel, levels, dtype=torch.float32, seed=0):
    draw = torch.Generator().manual_seed(seed)
    kernels = (
        torch.randn(levels + 2, channels, 1, kernel, kernel, generator=draw, dtype=torch.float64)
        / kernel
    )
    down, *weights = (each.to(dtype).requires_grad_() for each in kernels)
    return down, weights


def image(*shape, dtype=torch.float32):
    return golden_input(shape, seed=3).to(dtype)


def outcome(function, x, down, weights, **options):
    """Output, and gradients of input, shared kernel and level kernels for a fixed cotangent."""
    x = x.detach().requires_grad_()
    y = function(x, down, weights, **options)
    cotangent = golden_input(y.shape, seed=4).to(y.dtype)
    return [y, *torch.autograd.grad(y, [x, down, *weights], cotangent, allow_unused=True)]


def interpolation(small, large, mode):
    """Dense matrix (large, small) of the interpolation, from the published index formula."""
    matrix = torch.zeros(large, small, dtype=torch.float64)
    for target in range(large):
        if mode == 'nearest':
            matrix[target, target * small // large] = 1
            continue
        source = max((target + 0.5) * small / large - 0.5, 0)
        left = int(source)
        matrix[target, left] += 1 - (source - left)
        matrix[target, min(left + 1, small - 1)] += source - left
    return matrix


def convolution(x, weight, stride=1):
    """Depthwise correlation tap by tap."""
    radius, (h, w) = weight.shape[-1] // 2, x.shape[2:]
    padded = F.pad(x, (radius,) * 4)
    taps = [(i, j) for i in range(2 * radius + 1) for j in range(2 * radius + 1)]
    full = sum(weight[:, 0, i, j, None, None] * padded[:, :, i : i + h, j : j + w] for i, j in taps)
    return full[:, :, ::stride, ::stride]


def by_the_formula(x, down, weights, mode):
    levels = len(weights) - 1
    maps = [x]
    for _ in range(levels):
        maps.append(convolution(maps[-1], down, 2))
    z = 0
    for j in range(levels, 0, -1):
        y = convolution(maps[j] + z, weights[levels - j])
        rows = interpolation(y.shape[2], maps[j - 1].shape[2], mode)
        columns = interpolation(y.shape[3], maps[j - 1].shape[3], mode)
        z = rows @ y @ columns.T
    return convolution(x + z, weights[levels])


@pytest.mark.parametrize('mode', ['bilinear', 'nearest'])
@pytest.mark.parametrize('size', [(1, 1), (7, 4), (12, 13)])
@pytest.mark.parametrize('levels', [0, 1, 2, 4])
def test_reference_is_the_published_formula(levels, size, mode):
    x = image(2, 3, *size, dtype=torch.float64)
    down, weights = parameters(3, 3, levels, torch.float64)
    got = recconv2d_reference(x, down, weights, mode=mode)
    assert_close('output', got, by_the_formula(x, down, weights, mode), TOLERANCE[x.dtype][0])


@pytest.mark.parametrize(('mode', 'index'), GOLDENS)
def test_module_matches_the_authors(mode, index):
    case = load_golden(f'recnext/operator-recconv-{mode}')['cases'][index]
    module = load_golden_weights(
        RecConv2d(case['channels'], case['kernel_size'], level=case['level'], mode=case['mode'])
    )
    assert [[k, list(v.shape)] for k, v in module.state_dict().items()] == case['state_dict']
    x = golden_input(case['input_shape']).requires_grad_()
    y = module(x)
    (y * golden_input(y.shape, seed=1)).sum().backward()
    found = {'output': y, 'grad_input': x.grad}
    found.update({f'grad_{key}': p.grad for key, p in module.named_parameters()})
    recorded = {'output': case['output'], 'grad_input': case['grad_input']}
    recorded.update({f'grad_{key}': value for key, value in case['grads'].items()})
    assert found.keys() == recorded.keys()
    for name, summary in recorded.items():
        got, want = sampled(found[name], summary)
        assert (got - want).abs().max() <= GOLDEN_OPERATOR * max(summary['std'], 1.0), name


@pytest.mark.parametrize('mode', ['bilinear', 'nearest'])
@pytest.mark.parametrize('size', SIZES, ids=lambda size: f'{size[0]}x{size[1]}')
@pytest.mark.parametrize('levels', [1, 2, 4])
def test_cpu_backend_equals_the_reference_in_float64(levels, size, mode):
    down, weights = parameters(5, 5, levels)
    x = image(1, 5, *size)
    got = outcome(recconv2d, x, down, weights, mode=mode, backend='cpu')
    down64, *weights64 = (each.detach().double().requires_grad_() for each in (down, *weights))
    want = outcome(recconv2d_reference, x.double(), down64, weights64, mode=mode)
    output, parameter = TOLERANCE[torch.float32]
    for name, a, b in zip(('output', 'grad x', 'grad down', *('grad kernel',) * 9), got, want):
        assert_close(name, a, b, output if name in ('output', 'grad x') else parameter)


def expanded(x):
    return x[:, :, :1].expand_as(x)


@pytest.mark.parametrize(
    'arrange',
    [
        lambda x: x.contiguous(memory_format=torch.channels_last),
        lambda x: F.pad(x, (0, 0, 0, 0, 1, 2))[:, 1:-2],
        lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
        expanded,
    ],
    ids=['channels-last', 'channel-slice', 'transposed', 'expanded'],
)
@pytest.mark.parametrize('kernel', [3, 7])
def test_strides_of_the_input_change_no_value(kernel, arrange):
    down, weights = parameters(6, kernel, 3)
    x = arrange(image(2, 6, 11, 14))
    want = outcome(recconv2d_reference, x.contiguous(), down, weights)
    for name, a, b in zip('ygdwwww', outcome(recconv2d, x, down, weights), want):
        assert_close(name, a, b, TOLERANCE[torch.float32][1])


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_layout_of_the_input_is_kept(layout):
    down, weights = parameters(6, 5, 2)
    x = image(2, 6, 10, 9).contiguous(memory_format=layout).requires_grad_()
    y = recconv2d(x, down, weights)
    y.sum().backward()
    assert y.is_contiguous(memory_format=layout) and x.grad.is_contiguous(memory_format=layout)


@pytest.mark.parametrize('frozen', ['x', 'down', 'weights'])
def test_only_wanted_gradients_are_computed(frozen):
    down, weights = parameters(4, 5, 2)
    x = image(2, 4, 9, 9).requires_grad_(frozen != 'x')
    down.requires_grad_(frozen != 'down')
    for weight in weights:
        weight.requires_grad_(frozen != 'weights')
    recconv2d(x, down, weights).sum().backward()
    assert (x.grad is None, down.grad is None, weights[1].grad is None) == (
        frozen == 'x',
        frozen == 'down',
        frozen == 'weights',
    )


def test_gradients_agree_with_finite_differences():
    down, weights = parameters(2, 3, 2, torch.float64)
    x = image(1, 2, 5, 6, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, d, *w: recconv2d(x, d, w), (x, down, *weights))


def test_operator_is_registered_completely():
    down, weights = parameters(3, 3, 2)
    x = image(2, 3, 7, 6).requires_grad_()
    torch.library.opcheck(torch.ops.mmlk.recconv2d.default, (x, down, weights, 'bilinear'))


@pytest.mark.slow
def test_whole_graph_compiles():
    module = RecConv2d(3, 3, level=2)
    x = image(2, 3, 9, 8)
    compiled = torch.compile(module, fullgraph=True, backend='aot_eager')
    y, want = compiled(x), module(x)
    y.sum().backward()
    assert_close('output', y, want, TOLERANCE[torch.float32][0])
    assert all(p.grad is not None for p in module.parameters())


def test_exported_graph_holds_plain_operators_only():
    module = RecConv2d(3, 5, level=2)
    graph = torch.export.export(module, (image(1, 3, 9, 8),)).graph
    called = {str(node.target) for node in graph.nodes if node.op == 'call_function'}
    assert called and not any('mmlk' in name for name in called)


def test_two_runs_are_bit_identical():
    down, weights = parameters(8, 5, 3)
    x = image(2, 8, 21, 17)
    for a, b in zip(*(outcome(recconv2d, x, down, weights) for _ in range(2))):
        assert torch.equal(a, b)


@pytest.mark.parametrize('backend', ['cpu', 'reference'])
@pytest.mark.parametrize('levels', [4, 5])
def test_bfloat16_autocast_stays_within_two_percent(levels, backend):
    down, weights = parameters(8, 5, levels)
    x = image(2, 8, 64, 64)
    want = recconv2d(x, down, weights)
    with torch.autocast('cpu', torch.bfloat16):
        got = recconv2d(x, down, weights, backend=backend)
    assert got.dtype == torch.bfloat16
    assert_close('output', got, want, 0.02)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_sixteen_bit_input_is_rounded_once(dtype):
    down, weights = parameters(4, 5, 3, dtype)
    x = image(2, 4, 19, 16).to(dtype)
    got = outcome(recconv2d, x, down, weights, backend='cpu')
    down64, *weights64 = (each.detach().double().requires_grad_() for each in (down, *weights))
    want = outcome(recconv2d_reference, x.double(), down64, weights64)
    for name, a, b in zip('ygdwwww', got, want):
        assert a.dtype == dtype
        assert_close(name, a, b, TOLERANCE[dtype][1])


def test_float16_overflow_is_reported_once_with_the_remedy(caplog):
    module = RecConv2d(4, 5, level=4)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(0.25)
    x = torch.full((1, 4, 64, 64), 8.0)
    with caplog.at_level(logging.WARNING, logger='mmlk'), torch.autocast('cpu', torch.float16):
        y = module(x)
        module(x)
    assert not torch.isfinite(y).all()
    assert torch.isfinite(module(x)).all(), 'float32 has the range'
    (record,) = caplog.records
    assert 'use bfloat16 or float32' in record.message


def test_float16_within_range_is_not_reported(caplog):
    module = RecConv2d(4, 5, level=4)
    with caplog.at_level(logging.WARNING, logger='mmlk'), torch.autocast('cpu', torch.float16):
        assert torch.isfinite(module(image(1, 4, 32, 32))).all()
    assert not caplog.records


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (dict(level=-1), 'RecConv2d: level -1'),
        (dict(kernel_size=4), 'RecConv2d: kernel_size 4 must be odd'),
        (dict(kernel_size=0), 'RecConv2d: kernel_size 0 must be odd'),
        (dict(mode='bicubic'), "RecConv2d: mode 'bicubic' is not one of bilinear, nearest"),
    ],
)
def test_bad_constructor_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        RecConv2d(8, **arguments)


def wrong(**change):
    down, weights = parameters(4, 5, 1)
    call = dict(x=image(1, 4, 6, 6), down_weight=down, weights=weights, mode='bilinear')
    return {**call, **change}


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (wrong(mode='cubic'), "recconv2d: mode 'cubic' is not one of bilinear, nearest"),
        (wrong(weights=[]), 'recconv2d: weights is empty, expected L \\+ 1 kernels'),
        (wrong(x=torch.zeros(4, 6, 6)), r'recconv2d: x has shape \(4, 6, 6\)'),
        (wrong(x=torch.zeros(1, 3, 6, 6)), r'recconv2d: down_weight has shape .* for 3 channels'),
        (wrong(down_weight=torch.zeros(4, 1, 4, 4)), r'recconv2d: down_weight has the even kernel'),
        (
            wrong(weights=[torch.zeros(4, 1, 5, 5), torch.zeros(4, 1, 6, 6)]),
            r'recconv2d: weights\[1\] has the even kernel \(6, 6\)',
        ),
        (
            wrong(x=torch.zeros(1, 4, 6, 6, dtype=torch.float64)),
            'recconv2d: x is torch.float64 but down_weight is torch.float32',
        ),
    ],
    ids=['mode', 'empty', 'rank', 'channels', 'even-down', 'even-kernel', 'dtype'],
)
def test_bad_call_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        recconv2d(**call)


def test_a_list_of_the_wrong_length_is_named():
    module = RecConv2d(4, level=2)
    del module.convs[0]
    with pytest.raises(ValueError, match='RecConv2d: 2 kernels for 2 levels, expected 3'):
        module(image(1, 4, 6, 6))


def test_explain_names_the_backend_taken():
    down, weights = parameters(4, 5, 1)
    said = explain('recconv2d', image(1, 4, 6, 6), down, weights, mode='bilinear')
    assert said.startswith('triton: not used, the input is on cpu\ncpu: used')
    assert 'reference: not used' in said


def test_flops_are_those_of_the_convolutions():
    down, weights = parameters(4, 5, 3)
    x = image(2, 4, 24, 20).requires_grad_()
    with FlopCounterMode(display=False) as reference:
        recconv2d(x, down, weights, backend='reference')
    with FlopCounterMode(display=False) as forward:
        y = recconv2d(x, down, weights)
    with FlopCounterMode(display=False) as backward:
        y.sum().backward()
    assert forward.get_total_flops() == reference.get_total_flops()
    # torch's formula for the gradient of a grouped convolution counts the groups twice.
    assert backward.get_total_flops() == 2 * forward.get_total_flops()
