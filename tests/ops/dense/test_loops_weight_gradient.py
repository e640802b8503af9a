"""The compiled weight gradient against float64 sums, and what it may read and write."""

import math

import pytest
import torch

from mmlk.ops import jit
from mmlk.ops.dense.loops_weight_gradient import weight_gradient
from tests.cases import TOLERANCE, assert_close

pytestmark = pytest.mark.skipif(jit.refusal() is not None, reason=str(jit.refusal()))

LIMIT = TOLERANCE[torch.float32][1]
# Remainders of every kind; several spans; several chunks.
SHAPES = [
    (1, 1, 1),
    (3, 16, 16),
    (5, 15, 33),
    (7, 17, 100),
    (64, 130, 65),
    (257, 40, 30),
    (700, 33, 9),
    (9000, 90, 70),
    (300, 1000, 900),
]


def operands(rows, outputs, inputs):
    generator = torch.Generator().manual_seed(rows + outputs)
    return [
        torch.randn(size, generator=generator)
        for size in ((rows, outputs), (rows, inputs), (outputs,), (rows, outputs))
    ]


@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_equals_sums_in_float64(shape):
    grad, x, factors, y = operands(*shape)
    product, total = grad.double().t() @ x.double(), grad.double().sum(0)
    weight, bias, scale = weight_gradient(grad, x)
    assert_close('weight', weight, product, LIMIT)
    assert bias is None and scale is None
    weight, bias, scale = weight_gradient(grad, x, bias=True, factors=factors, y=y)
    assert_close('scaled weight', weight, factors.double()[:, None] * product, LIMIT)
    assert_close('bias', bias, factors.double() * total, LIMIT)
    assert_close('scale', scale, (grad.double() * y.double()).sum(0), LIMIT)
    assert weight.is_contiguous()


def test_the_same_on_any_number_of_threads():
    grad, x, factors, y = operands(1500, 150, 170)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(weight_gradient(grad, x, bias=True, factors=factors, y=y))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(*pair) for pair in zip(*found))


def test_rows_within_wider_rows_and_the_end_of_memory():
    grad, x, _, y = operands(21, 19, 35)
    want = weight_gradient(grad, x, bias=True, y=y)

    def within(values):
        wide = torch.full((values.shape[0], values.shape[1] + 7), math.nan)
        wide[:, 7:] = values
        return wide[:, 7:]

    got = weight_gradient(within(grad), within(x), bias=True, y=within(y))
    assert all(torch.equal(*pair) for pair in zip(got, want))


@pytest.mark.parametrize(
    ('name', 'operand'),
    [
        ('grad', torch.zeros(0, 5)),
        ('grad', torch.zeros(4, 5).double()),
        ('grad', torch.zeros(4, 10)[:, ::2]),
        ('x', torch.zeros(3, 6)),
        ('factors', torch.zeros(6)),
        ('y', torch.zeros(4, 6)),
        ('y', torch.zeros(4, 5, dtype=torch.bfloat16)),
    ],
)
def test_operands_that_do_not_fit_are_refused(name, operand):
    operands = {'grad': torch.zeros(4, 5), 'x': torch.zeros(4, 6)}
    with pytest.raises(ValueError, match=f'weight_gradient: ({name}|x) .* is not'):
        weight_gradient(**{**operands, name: operand})


def test_a_product_of_other_strides_is_refused():
    with pytest.raises(ValueError, match='strides'):
        weight_gradient(torch.zeros(4, 5), torch.zeros(4, 6), y=torch.zeros(4, 9)[:, :5])
