"""Axes of one element, whose strides mean nothing, and batches of none: equal to the reference."""

import pytest
import torch

from tests.ops.operators import CALLS, calls, check, outcome

SIZES = {
    'one-image': dict(n=1),
    'one-row': dict(n=2, h=1),
    'one-column': dict(n=2, w=1),
    'one-pixel': dict(n=3, h=1, w=1),
}
# The kernels of the constructed convolutions have no batch and no map.
of_maps = pytest.mark.parametrize('name', [each for each in CALLS if not each.startswith('dcls')])


@pytest.fixture(autouse=True, params=['compiled', 'torch'])
def _routes(request, monkeypatch):
    monkeypatch.setenv('MMLK_JIT', '1' if request.param == 'compiled' else '0')


def with_stride(x, stride):
    """The same values; every axis of one element has ``stride``."""
    strides = [stride if size == 1 else each for size, each in zip(x.shape, x.stride())]
    return x.as_strided(x.shape, strides)


@pytest.mark.parametrize('gradients', [False, True], ids=['inference', 'training'])
@pytest.mark.parametrize('size', SIZES)
@of_maps
def test_strides_of_axes_of_one_element_mean_nothing(name, size, gradients, monkeypatch):
    sizes = dict(SIZES[size])
    if name == 'patch_conv2d':  # of 2 x 2 pixels
        sizes = {axis: 2 if axis in 'hw' else each for axis, each in sizes.items()}
    call = calls(**sizes)[name]
    monkeypatch.setitem(CALLS, name, call)
    for stride in (0, 1, 10**9):
        tensors = [with_stride(each, stride) for each in call.tensors()]
        check(name, tensors, gradients)


@pytest.mark.parametrize('gradients', [False, True], ids=['inference', 'training'])
@of_maps
def test_batches_of_no_image_are_what_they_are_for_the_reference(name, gradients, monkeypatch):
    """Statistics of no pixel are refused by torch, and so here."""
    call = calls(n=0)[name]
    monkeypatch.setitem(CALLS, name, call)
    tensors = call.tensors()
    try:
        want = outcome(name, [each.double() for each in tensors], gradients, reference=True)
    except (RuntimeError, ValueError):
        with pytest.raises((RuntimeError, ValueError)):
            outcome(name, tensors, gradients)
        return
    for mine, theirs in zip(outcome(name, tensors, gradients), want, strict=True):
        assert mine.shape == theirs.shape
        assert torch.equal(mine.double(), theirs)  # nothing, or gradients of zero
