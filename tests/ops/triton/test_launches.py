"""Launches and copied maps of every operator on CUDA, by pass, without a GPU; sizes of the grids."""

import math
from collections import Counter

import pytest
import torch

from mmlk.ops.dcls import triton as dcls
from mmlk.ops.depthwise import triton as depthwise
from mmlk.ops.inception import triton as inception
from mmlk.ops.large_kernel import triton as large_kernel
from mmlk.ops.recconv import triton as recconv
from mmlk.ops.triton import planes, runtime

CHANNELS = 64
DIRECT, DIRECT_LAST = ['convolve_plain'], ['convolve_last']
PRODUCT = ['tap_vectors', 'convolve']
PRODUCT_GRADIENTS = [*PRODUCT, 'correlate', 'fold']


def image(side, last):
    return runtime.meta(2, CHANNELS, side, side, last=last)


def kernels(*sizes, channels=None):
    channels = channels or CHANNELS
    return [runtime.meta(channels, 1, *size, dtype=torch.float32) for size in sizes]


def depthwise_passes(side, last, size):
    x, y, (weight,) = image(side, last), image(side, last), kernels(size)
    return (
        lambda: depthwise.forward(x, weight, None, (1, 1)),
        lambda: depthwise.backward(y, x, weight, (1, 1), [True] * 3),
    )


def branches_passes(side, last):
    x, weights = image(side, last), kernels((51, 5), (5, 51), (5, 5))
    grads = [image(side, last) for _ in weights]
    return (
        lambda: large_kernel.branches(x, *weights),
        lambda: large_kernel.backward(*grads, x, *weights, [True] * 5),
    )


def sum_passes(side, last):
    x, weights = image(side, last), kernels((51, 5), (5, 51), (5, 5))
    return (lambda: large_kernel.total(x, *weights, None),)


def inception_passes(side, last):
    x, y, branch = image(side, last), image(side, last), CHANNELS // 8
    weights = kernels((3, 3), (1, 11), (11, 1), channels=branch)
    biases = [runtime.meta(branch, dtype=torch.float32) for _ in weights]
    given = [each for pair in zip(weights, biases) for each in pair]
    return (
        lambda: inception.forward(x, *given),
        lambda: inception.backward(y, x, *weights, [True] * 7),
    )


def recconv_passes(side, last):
    x, y = image(side, last), image(side, last)
    down, *weights = kernels(*[(5, 5)] * 4)
    return (
        lambda: recconv.forward(x, down, weights, 'bilinear'),
        lambda: recconv.backward(y, x, down, weights, [], 'bilinear', [True] * 3),
    )


def dcls_passes(side, last):
    weight = runtime.meta(CHANNELS, 1, 34, dtype=torch.float32)
    positions = runtime.meta(2, CHANNELS, 1, 34, dtype=torch.float32)
    grad = runtime.meta(CHANNELS, 1, 17, 17, dtype=torch.float32)
    return (
        lambda: dcls.forward(weight, positions, None, (17, 17), 'v1'),
        lambda: dcls.backward(grad, weight, positions, None, (17, 17), 'v1'),
    )


def table():
    """One row a call: operator, passes, side, layout; for each pass its launches and copied maps."""
    for side, last in ((56, False), (56, True), (14, False), (14, True)):
        copied = last or side % 4 > 0

        def moved(launches, maps, copied=copied):
            return ([*launches, *['copy_planes'] * 2], maps) if copied else (launches, 0)

        place = f'{side}-{"channels_last" if last else "contiguous"}'
        direct = DIRECT_LAST if last else DIRECT
        sums = ['tap_sums_last' if last else 'tap_sums_plain', 'reduce_taps']
        for name, make, want in (
            ('7x7', (depthwise_passes, (7, 7)), [(direct, 0), ([*direct, *sums], 0)]),
            # Map in and result out; both maps in and the gradient out.
            (
                '17x17',
                (depthwise_passes, (17, 17)),
                [moved(PRODUCT, 2), moved(PRODUCT_GRADIENTS, 3)],
            ),
            # Map in and three results out; four maps in and the gradient out.
            ('branches', (branches_passes,), [moved(PRODUCT, 4), moved(PRODUCT_GRADIENTS, 5)]),
            ('sum', (sum_passes,), [moved(PRODUCT, 2)]),
            ('inception', (inception_passes,), [(1, 0), (2, 0)]),
            ('recconv', (recconv_passes,), [(1, 0), (2, 0)]),
            ('dcls', (dcls_passes,), [(1, 0), (1, 0)]),
        ):
            yield pytest.param(make, side, last, want, id=f'{name}-{place}')


@pytest.mark.parametrize('make,side,last,want', table())
def test_launches_and_copies(make, side, last, want):
    """``want``: names of the launches of each pass, or their number, and the maps that are copied."""
    passes = make[0](side, last, *make[1:])
    assert len(passes) == len(want)
    for call, (launches, maps) in zip(passes, want):
        with runtime.recording() as found:
            call()
        names = [each.kernel.__name__ for each in found]
        if isinstance(launches, int):
            assert len(names) == launches, names
        else:
            assert Counter(names) == Counter(launches)
        copies = [each for each in found if each.kernel.__name__ == 'copy_planes']
        assert sum(len(each.args[0]) for each in copies) == maps


@pytest.mark.parametrize('make,side,last,_', table())
def test_grids_have_room_for_any_number_of_channels(make, side, last, _, monkeypatch):
    """CUDA has 2^31 - 1 programs along the first axis of a grid and 65,535 along the others."""
    monkeypatch.setitem(globals(), 'CHANNELS', 70_000)
    with runtime.recording() as found:
        for call in make[0](side, last, *make[1:]):
            call()
    assert found
    for each in found:
        assert max(each.grid[1:], default=1) <= 65_535 and math.prod(each.grid) < 2**31


def test_more_programs_than_cuda_launches_are_an_error():
    for grid in ((1, 65_536), (1, 1, 65_536), (2**31,), (2**20, 2**11)):
        with runtime.recording(), pytest.raises(RuntimeError, match='CUDA has .* at most'):
            runtime.launch(planes.copy_planes, grid)
