"""Derivatives beyond the ordinary gradient: right, or refused in words, for every operator."""

import pytest
import torch
from torch.autograd import forward_ad

from tests.cases import TOLERANCE, assert_close
from tests.ops.operators import CALLS, compute, outcome

BOUND = TOLERANCE[torch.float32][1]
names = pytest.mark.parametrize('name', CALLS)


def directions(tensors):
    return [each.flip(0).contiguous() for each in tensors]


def loss(name, reference=False):
    """The operator with a weighted sum of squares of its results, as a function of its operands."""

    def function(*tensors):
        results = compute(name, list(tensors), reference)
        return sum((index + 1) * y.square().sum() for index, y in enumerate(results))

    return function


def doubles(tensors):
    return [each.detach().double() for each in tensors]


def assert_gradients(name, got, want, tolerance=BOUND):
    for index, (mine, theirs) in enumerate(zip(got, want, strict=True)):
        if theirs is None or theirs.abs().max() < 1e-9:
            # The bias of a norm in front of another has no gradient but the rounding of its sum.
            assert mine is None or mine.abs().max() < 1e-2, f'{name}, operand {index}'
            continue
        assert mine is not None, f'{name}, operand {index}: no gradient'
        assert_close(f'{name}, operand {index}', mine, theirs, tolerance)


def tangents(name, dtype, reference=False):
    """Derivative of the results along fixed directions of all operands, in forward mode."""
    tensors = [each.to(dtype) for each in CALLS[name].tensors()]
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(*each) for each in zip(tensors, directions(tensors))]
        return [forward_ad.unpack_dual(y).tangent for y in compute(name, duals, reference)]


@pytest.mark.parametrize('gradients', [False, True], ids=['no_grad', 'grad'])
@names
def test_forward_mode_gives_what_the_reference_gives(name, gradients):
    with torch.set_grad_enabled(gradients):
        got = tangents(name, torch.float32)
    assert_gradients(name, got, tangents(name, torch.float64, reference=True))


@names
def test_second_derivatives_are_right_or_raise(name):
    tensors = [each.requires_grad_() for each in CALLS[name].tensors()]
    exact = [each.requires_grad_() for each in doubles(tensors)]
    first, want = (
        torch.autograd.grad(loss(name, reference)(*leaves), leaves, create_graph=True)
        for leaves, reference in ((tensors, False), (exact, True))
    )
    for index, (mine, theirs) in enumerate(zip(first, want, strict=True)):
        try:
            second = torch.autograd.grad(
                mine.square().sum(), tensors, retain_graph=True, allow_unused=True
            )
        except RuntimeError as error:
            assert 'second derivatives are not available' in str(error)
            continue
        right = torch.autograd.grad(
            theirs.square().sum(), exact, retain_graph=True, allow_unused=True
        )
        assert_gradients(f'{name}, gradient {index}', second, right, 10 * BOUND)


@names
def test_each_second_derivative_alone_is_right_or_raises(name):
    """torch leaves out nodes that nobody asks for: no path to an operand may be lost with them."""
    tensors = [each.requires_grad_() for each in CALLS[name].tensors()]
    exact = [each.requires_grad_() for each in doubles(tensors)]
    first, want = (
        torch.autograd.grad(loss(name, reference)(*leaves), leaves, create_graph=True)
        for leaves, reference in ((tensors, False), (exact, True))
    )
    for index in range(len(tensors)):
        try:
            (second,) = torch.autograd.grad(
                first[0].square().sum(), tensors[index], retain_graph=True, allow_unused=True
            )
        except RuntimeError as error:
            assert 'second derivatives are not available' in str(error)
            continue
        right = torch.autograd.grad(
            want[0].square().sum(), exact[index], retain_graph=True, allow_unused=True
        )
        assert_gradients(f'{name}, operand {index}', [second], right, 10 * BOUND)


@names
def test_gradients_of_some_operands_alone(name):
    """The first, the second and the last alone, and all but the first: loops differ by what is asked."""
    tensors = CALLS[name].tensors()
    exact = [each.requires_grad_() for each in doubles(tensors)]
    want = torch.autograd.grad(loss(name, True)(*exact), exact)
    numbers = list(range(len(tensors)))
    for chosen in filter(None, ([0], numbers[1:2], numbers[-1:], numbers[1:])):
        leaves = [
            each.detach().requires_grad_(index in chosen) for index, each in enumerate(tensors)
        ]
        got = torch.autograd.grad(loss(name)(*leaves), [leaves[index] for index in chosen])
        assert_gradients(f'{name}, {chosen}', got, [want[index] for index in chosen])


def by_grad(function, tensors):
    return torch.func.grad(function, tuple(range(len(tensors))))(*tensors)


def by_jvp(function, tensors):
    return [torch.func.jvp(function, tuple(tensors), tuple(directions(tensors)))[1]]


def by_vmap(function, tensors):
    stacked = [torch.stack([each, each.flip(0)]) for each in tensors]
    return [torch.func.vmap(function)(*stacked)]


def by_grad_of_samples(function, tensors):
    stacked = [torch.stack([each, each.flip(0)]) for each in tensors]
    return torch.func.vmap(torch.func.grad(function, tuple(range(len(tensors)))))(*stacked)


@pytest.mark.parametrize('transform', [by_grad, by_jvp, by_vmap, by_grad_of_samples])
@names
def test_function_transforms_do_what_they_do_with_the_reference(name, transform):
    """Statistics of a batch norm cannot be updated under vmap: refused for the reference, too."""
    tensors = CALLS[name].tensors()
    try:
        want = transform(loss(name, True), doubles(tensors))
    except RuntimeError:
        with pytest.raises(RuntimeError):
            transform(loss(name), tensors)
        return
    assert_gradients(name, transform(loss(name), tensors), want)


@names
def test_results_under_no_grad_are_those_with_gradients(name):
    tensors = CALLS[name].tensors()
    without = outcome(name, tensors, False)
    with_gradients = outcome(name, tensors, True)[: len(without)]
    for mine, theirs in zip(with_gradients, without, strict=True):
        assert not theirs.requires_grad
        assert_close(name, mine, theirs, TOLERANCE[torch.float32][0])
