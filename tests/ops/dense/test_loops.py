"""The compiled matrix product against float64 formulas, and the memory around its result."""

import math

import pytest
import torch

from mmlk.ops import folded_linear, jit
from mmlk.ops.dense import products
from mmlk.ops.dense.loops import linear
from mmlk.ops.dense.loops_panels import pack, plain
from mmlk.ops.jit.language import kernel
from mmlk.ops.packed_weights import PackedWeights
from tests.cases import TOLERANCE, assert_close

pytestmark = pytest.mark.skipif(jit.refusal() is not None, reason=str(jit.refusal()))

LIMIT = TOLERANCE[torch.float32][0]


def exact_gelu(x):
    return x * 0.5 * torch.special.erfc(-x / math.sqrt(2.0))


def operands(rows, depth, features):
    generator = torch.Generator().manual_seed(rows + 100 * depth + features)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    return normal(rows, depth), normal(features, depth), normal(features), normal(rows, features)


def expected(x, weight, bias=None, gelu=False, residual=None):
    y = x.double() @ weight.double().t()
    y = y if bias is None else y + bias.double()
    y = exact_gelu(y) if gelu else y
    return y if residual is None else y + residual.double()


@pytest.mark.parametrize('features', [1, 15, 16, 17, 33])
@pytest.mark.parametrize('depth', [1, 3, 64, 257])
@pytest.mark.parametrize('rows', [1, 2, 3, 4, 5, 6, 7, 13])
def test_every_remainder_of_rows_depth_and_features(rows, depth, features):
    x, weight, bias, residual = operands(rows, depth, features)
    panels = pack(weight)
    assert_close('product', linear(x, panels), expected(x, weight), LIMIT)
    assert_close(
        'all',
        linear(x, panels, bias, gelu=True, residual=residual),
        expected(x, weight, bias, True, residual),
        LIMIT,
    )


def columns_contiguous(weight):
    return weight.t().contiguous().t()


ORDERS = {
    'packed rows': pack,
    'packed columns': lambda weight, *rest: pack(columns_contiguous(weight), *rest),
    'plain rows': plain,
    'plain columns': lambda weight, *rest: plain(columns_contiguous(weight), *rest),
}


@pytest.mark.parametrize('order', ORDERS)
@pytest.mark.parametrize(
    ('rows', 'depth', 'features'),
    [
        (800, 24, 50),
        (50, 300, 700),
        (257, 96, 130),
        (513, 7, 33),
        (1, 512, 2048),
        (7, 1301, 37),
        (300, 600, 17),
        (5, 3, 1),
    ],
)
def test_many_tasks_and_spans_cover_the_result(rows, depth, features, order):
    x, weight, bias, residual = operands(rows, depth, features)
    weight, factors = ORDERS[order](weight), torch.randn(features)
    y = linear(x, weight, bias, residual=residual)
    assert_close(
        'sum',
        y,
        expected(x, weight=plain_matrix(weight, depth), bias=bias, residual=residual),
        LIMIT,
    )
    before = torch.empty_like(y)
    y = linear(x, weight, bias, gelu=True, factors=factors, before=before)
    want = expected(x, plain_matrix(weight, depth), bias)
    assert_close('before', before, want, LIMIT)
    assert_close('scaled', y, factors.double() * exact_gelu(want), LIMIT)


def plain_matrix(weight, depth):
    """(N, K) again."""
    if hasattr(weight, 'matrix'):
        return weight.matrix
    return weight.panels.transpose(1, 2).reshape(-1, depth)[: weight.features]


@pytest.mark.parametrize('order', ORDERS)
@pytest.mark.parametrize(('rows', 'depth', 'features'), [(9, 21, 35), (40, 600, 16)])
def test_factors_of_the_columns_of_a_weight(rows, depth, features, order):
    x, weight, _, _ = operands(rows, depth, features)
    factors = torch.randn(depth)
    got = linear(x, ORDERS[order](weight, factors))
    assert_close('product', got, expected(x * factors.double(), weight), LIMIT)
    with pytest.raises(ValueError, match='plain: factors'):
        ORDERS[order](weight, factors[:-1])
    with pytest.raises(ValueError, match='plain: weight .*float64'):
        ORDERS[order](weight.double())


@pytest.mark.parametrize(
    ('rows', 'depth', 'features', 'blocks'), [(7, 5, 32, 2), (200, 24, 96, 3), (13, 40, 160, 2)]
)
def test_blocks_of_the_weight_see_columns_of_their_own(rows, depth, features, blocks):
    x, weight, bias, residual = operands(rows, depth, features)
    parts = [x + number for number in range(blocks)]
    want = torch.cat(
        [
            expected(part, *each)
            for part, *each in zip(parts, weight.chunk(blocks), bias.chunk(blocks))
        ],
        1,
    )
    panels, wide = pack(weight), torch.cat(parts, 1)
    assert_close('blocks', linear(wide, panels, bias, blocks=blocks), want, LIMIT)
    with pytest.raises(ValueError, match='blocks of whole vectors'):
        linear(wide, pack(weight[:-1]), blocks=blocks)
    with pytest.raises(ValueError, match='x '):
        linear(x, panels, blocks=blocks)


def test_the_values_before_the_activation_are_kept():
    x, weight, bias, residual = operands(40, 20, 35)
    before = torch.empty(40, 35)
    y = linear(x, pack(weight), bias, gelu=True, residual=residual, before=before)
    assert_close('before', before, expected(x, weight, bias), LIMIT)
    assert_close('after', y, expected(x, weight, bias, True, residual), LIMIT)
    with pytest.raises(ValueError, match='strides'):
        linear(x, pack(weight), before=before, out=torch.empty(40, 36)[:, :35])


def gelu_by_product(values):
    """GELU of a vector, as the product with a weight of one."""
    return linear(values[:, None].contiguous(), pack(torch.ones(1, 1)), gelu=True)[:, 0]


def test_gelu_errs_by_a_few_units_in_the_last_place_of_its_argument():
    small = torch.logspace(-30, 1.3, 4000)
    x = torch.cat([torch.linspace(-9, 9, 200_001), small, -small])
    error = (gelu_by_product(x).double() - exact_gelu(x.double())).abs()
    assert (error / x.double().abs().clamp_min(1e-35)).max() < 4.5 * 2**-24
    assert (error - 1e-7 * x.double().abs())[x.abs() < 0.1].max() <= 0


def test_gelu_of_special_values():
    x = torch.tensor([0.0, 20.0, -20.0, 2.0**99, -(2.0**99), math.inf, -math.inf, math.nan])
    y = gelu_by_product(x)
    assert y[:7].tolist() == [0.0, 20.0, 0.0, 2.0**99, 0.0, math.inf, 0.0]
    assert y[7].isnan()
    tiny = torch.tensor([1e-6, -1e-6])
    assert_close('tiny', gelu_by_product(tiny), exact_gelu(tiny.double()), LIMIT)


def test_derivative_of_gelu():
    small = torch.logspace(-30, 1.3, 4000)
    x = torch.cat([torch.linspace(-9, 9, 200_001), small, -small])[:, None].contiguous()
    ones, weight = torch.ones_like(x), pack(torch.full((1, 1), 2.0))
    slope = linear(ones, weight, before=x, slope=True) / 2
    exact = x.double().requires_grad_()
    (want,) = torch.autograd.grad(exact_gelu(exact).sum(), exact)
    assert (slope.double() - want).abs().max() < 6 * 2**-24
    assert (slope[x > 9] == 1).all() and (slope[x < -9] == 0).all()
    assert linear(ones[:1], weight, before=torch.full((1, 1), math.nan), slope=True).isnan()


@pytest.mark.parametrize(
    ('rows', 'depth', 'features'), [(7, 5, 17), (130, 24, 48), (130, 24, 40), (130, 48, 20)]
)
def test_products_of_a_training_step(rows, depth, features):
    x, weight, bias, grad = operands(rows, depth, features)
    wide, active = products.linear_gelu(x, weight, bias)
    assert_close('wide', wide, expected(x, weight, bias), LIMIT)
    assert_close('active', active, expected(x, weight, bias, True), LIMIT)
    assert_close('linear', products.linear(x, weight, bias), expected(x, weight, bias), LIMIT)
    want = expected(grad, weight.t())
    assert_close('gradient', products.input_gradient(grad, weight), want, LIMIT)
    exact = x.double().requires_grad_()
    (slope,) = torch.autograd.grad(exact_gelu(exact).sum(), exact)
    assert_close('through GELU', products.input_gradient(grad, weight, x), want * slope, LIMIT)


def test_nan_and_infinity_of_an_operand_reach_their_own_row_only():
    x, weight, bias, _ = operands(9, 20, 18)
    want = linear(x, pack(weight), bias)
    x[4, 3], x[7, 0] = math.nan, math.inf
    got = linear(x, pack(weight), bias)
    assert got[4].isnan().all() and got[7].isinf().all()
    others = [0, 1, 2, 3, 5, 6, 8]
    assert torch.equal(got[others], want[others])


@pytest.mark.parametrize('features', [16, 33])
def test_row_strides_and_memory_around_the_result(features):
    rows, depth = 13, 21
    x, weight, bias, residual = operands(rows, depth, features)
    wide_x = torch.full((rows, depth + 5), math.nan)
    wide_x[:, 2:-3] = x
    wide_residual = torch.full((rows, features + 9), math.nan)
    wide_residual[:, 4:-5] = residual
    wide_out = torch.full((rows + 2, features + 40), 123.0)
    out = wide_out[1:-1, 20:-20]
    got = linear(
        wide_x[:, 2:-3], pack(weight), bias, gelu=True, residual=wide_residual[:, 4:-5], out=out
    )
    assert got is out
    assert_close('inside', out, expected(x, weight, bias, True, residual), LIMIT)
    out.fill_(123.0)
    assert (wide_out == 123.0).all(), 'something around the result was overwritten'


def test_operands_that_end_with_their_memory_are_not_read_beyond_it():
    features, depth, rows = 17, 5, 7
    x, weight, bias, residual = operands(rows, depth, features)

    def at_the_end(values):
        storage = torch.cat([values.flatten(), torch.full((64,), math.nan)])
        return storage[: values.numel()].view(values.shape)

    want = linear(x, pack(weight), bias, residual=residual)
    for order in (pack, plain):
        for held in (at_the_end(weight), at_the_end(weight.t()).t()):
            got = linear(
                at_the_end(x), order(held), at_the_end(bias), residual=at_the_end(residual)
            )
            assert torch.equal(got, want)


def test_the_residual_may_be_the_result():
    x, weight, bias, residual = operands(20, 1100, 40)
    want = expected(x, weight, bias, residual=residual)
    linear(x, pack(weight), bias, residual=residual, out=residual)
    assert_close('in place', residual, want, LIMIT)


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize('order', ORDERS)
@pytest.mark.parametrize(('rows', 'depth', 'features'), [(50, 301, 500), (700, 96, 90)])
def test_results_do_not_depend_on_the_number_of_threads(threads, rows, depth, features, order):
    x, weight, bias, _ = operands(rows, depth, features)
    weight = ORDERS[order](weight)
    threads(1)
    alone = linear(x, weight, bias, gelu=True)
    threads(2)
    assert torch.equal(linear(x, weight, bias, gelu=True), alone)


def test_weights_of_any_strides_are_packed():
    x, weight, _, _ = operands(5, 12, 20)
    want = linear(x, pack(weight))
    assert torch.equal(linear(x, pack(weight.t().contiguous().t())), want)
    assert pack(weight).panels.shape == (2, 12, 16)
    assert torch.equal(
        linear(x, pack(weight.repeat(1, 2)[:, ::2].contiguous())),
        linear(x, pack(weight.repeat(1, 2)[:, ::2])),
    )


@pytest.mark.parametrize('packed', [True, False])
@pytest.mark.parametrize('shape', [(1, 12), (20, 1), (1, 1), (20, 12)], ids=str)
def test_weights_whose_axes_have_one_element_or_odd_strides(shape, packed):
    """An axis of one element may have any stride, an expanded one has none."""
    x = torch.randn(5, shape[1])
    wide = torch.randn(4 * shape[0], 4 * shape[1])
    views = [
        wide.as_strided(shape, steps)
        for steps in ((1, 4), (4, 1), (4, 3), (0, 1), (1, 0), (0, 0), (7, 7), (1, shape[0]))
    ]
    for weight in views:
        got = linear(x, (pack if packed else plain)(weight))
        want = x.double() @ weight.double().t()
        assert_close(f'strides {weight.stride()}', got, want, TOLERANCE[torch.float32][1])


def test_no_rows_and_no_depth():
    assert linear(torch.empty(0, 4), pack(torch.randn(3, 4))).shape == (0, 3)
    bias = torch.randn(3)
    assert torch.equal(linear(torch.empty(2, 0), pack(torch.empty(3, 0)), bias), bias.expand(2, 3))


@pytest.mark.parametrize(
    'change',
    [
        dict(x=torch.zeros(4, 7)),
        dict(x=torch.zeros(4, 16)[:, ::2]),
        dict(x=torch.zeros(4, 8).double()),
        dict(bias=torch.zeros(4)),
        dict(factors=torch.zeros(4)),
        dict(residual=torch.zeros(4, 4)),
        dict(out=torch.zeros(3, 5)),
        dict(out=torch.zeros(4, 5, dtype=torch.int32)),
    ],
    ids=lambda change: next(iter(change)),
)
def test_operands_that_do_not_fit_are_refused(change):
    name = next(iter(change))
    with pytest.raises(ValueError, match=f'linear: {name} .* is not'):
        linear(**{'x': torch.zeros(4, 8), 'weight': pack(torch.zeros(5, 8)), **change})


@pytest.mark.parametrize('setting', ['0', '1'])
@pytest.mark.parametrize('gelu', [False, True])
def test_folded_product_is_the_same_with_and_without_the_compiler(monkeypatch, setting, gelu):
    monkeypatch.setenv('MMLK_JIT', setting)
    x, weight, bias, residual = operands(12, 10, 20)
    copies = PackedWeights()
    shape = (3, 4, 10)
    with torch.no_grad():
        got = folded_linear(
            x.view(shape), weight, bias, residual.view(3, 4, 20), gelu=gelu, copies=copies
        )
    assert_close(
        'with residual', got.view(12, 20), expected(x, weight, bias, gelu, residual), LIMIT
    )
    matrix = weight[:, :, None, None]
    with torch.no_grad():
        got = folded_linear(x.view(shape), matrix, gelu=gelu, copies=PackedWeights())
    assert_close('plain', got.view(12, 20), expected(x, weight, gelu=gelu), LIMIT)


def test_nothing_is_compiled_where_that_is_switched_off(monkeypatch):
    @kernel('x_p')
    def nothing(k, x):
        pass

    monkeypatch.setenv('MMLK_JIT', '0')
    with pytest.raises(RuntimeError, match='nothing: .* MMLK_JIT=0'):
        nothing()
