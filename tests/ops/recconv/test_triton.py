"""The fused recursion in Triton's interpreter, output and gradients against float64."""

import pytest
import torch

from mmlk.ops.recconv import cuda as recconv_cuda
from mmlk.ops.recconv import triton as recconv
from mmlk.ops.triton import runtime
from tests.ops.triton.interpreter import check_recconv, check_recconv_not_finite

PLAIN, LAST = 'contiguous', 'channels_last'
SMALL = dict(ROWS=2)  # shorter strips: less to interpret, and several of them on a small map
BANDS = dict(ROWS=2, BAND=4, FUSED_PIXELS=12, SMALL_PIXELS=12)

# id -> (N, C, H, W), levels, kernel, mode, layout, constants of the module
CASES = {
    'odd': ((1, 3, 5, 3), 2, 3, 'bilinear', PLAIN, SMALL),
    'nearest-last': ((2, 3, 5, 4), 1, 3, 'nearest', LAST, SMALL),
    'pixel': ((1, 2, 1, 1), 2, 5, 'bilinear', PLAIN, SMALL),
    'one-tap': ((1, 2, 4, 3), 1, 1, 'bilinear', PLAIN, SMALL),
    'bands': ((1, 1, 9, 3), 1, 3, 'bilinear', PLAIN, BANDS),
}
SLOW_CASES = {
    'published': ((1, 2, 9, 7), 2, 5, 'bilinear', PLAIN, {}),
    'published-last': ((1, 17, 3, 4), 1, 5, 'bilinear', LAST, {}),
    'four-levels': ((2, 2, 7, 9), 4, 3, 'bilinear', PLAIN, SMALL),
    'seven-taps': ((1, 1, 7, 5), 1, 7, 'bilinear', PLAIN, SMALL),
    'bands-nearest-last': ((2, 3, 11, 4), 1, 3, 'nearest', LAST, BANDS),
    'bands-then-whole': ((1, 2, 11, 7), 3, 3, 'bilinear', PLAIN, dict(BANDS, SMALL_PIXELS=30)),
}


@pytest.mark.parametrize('case', CASES)
def test_recursion_equals_reference(interpreted, case):
    *arguments, settings = CASES[case]
    interpreted(run, arguments, torch.float32, settings)


@pytest.mark.slow
@pytest.mark.parametrize('case', SLOW_CASES)
def test_larger_recursions_equal_reference(interpreted, case):
    *arguments, settings = SLOW_CASES[case]
    interpreted(run, arguments, torch.float32, settings)


@pytest.mark.slow
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
def test_half_maps_with_float_weights(interpreted, dtype):
    interpreted(run, ((1, 2, 5, 3), 1, 3, 'bilinear', 'channel_slice'), dtype, SMALL)


@pytest.mark.parametrize('mode', ['bilinear', 'nearest'])
def test_infinite_values_spread_as_in_the_reference(interpreted, mode):
    interpreted(check_recconv_not_finite, mode)


@pytest.mark.parametrize('last', [False, True])
@pytest.mark.parametrize(
    'shape,levels',
    [
        ((64, 64, 56, 56), 4),
        ((256, 128, 28, 28), 3),
        ((256, 512, 7, 7), 1),
        ((64, 64, 64, 64), 4),
        ((16, 64, 128, 160), 4),
        ((2, 64, 200, 336), 4),
        ((1, 48, 500, 900), 4),
    ],
)
def test_scratch_memory_stays_within_its_budget(shape, levels, last):
    x = runtime.meta(*shape, last=last)
    down, *weights = [runtime.meta(shape[1], 1, 5, 5)] * (levels + 2)
    with runtime.recording() as found:
        recconv.forward(x, down, weights, 'bilinear')
        recconv.backward(x, x, down, weights, [], 'bilinear', [True] * 3)
    sizes = {}
    for each in found:
        names = each.kernel.arg_names
        if 'scratch' in names or 'area' in names:
            given = each.args[names.index('scratch' if 'scratch' in names else 'area')]
            sizes[each.kernel.__name__] = 4 * given.numel()
            # The programs that share it are most of those that a GPU holds, or all.
            warps = 8 if 'partial' in names else 16
            held = 128 * warps // each.options['num_warps']
            assert each.grid[0] >= min(held // 2, shape[0] * shape[1] // 16)
    assert sizes and max(sizes.values()) <= 2**25, sizes


def run(arguments, dtype, settings):
    check_recconv(*arguments, dtype, **settings)


@pytest.mark.parametrize(
    ('sizes', 'count', 'reason'),
    [
        ((9, 9), 3, 'a side above 7'),
        ((3, 5), 3, 'only equal square ones'),
        ((5, 5), 10, 'at most 7 are fused'),
    ],
)
def test_what_is_not_fused_is_refused_with_its_reason(sizes, count, reason):
    weights = [torch.empty(2, 1, *sizes)] * count
    assert reason in recconv_cuda.refusal_of_recursion(torch.empty(1, 2, 4, 4), weights[0], weights)
