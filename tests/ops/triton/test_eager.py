"""What eager calls on CUDA run instead of a registered operator, with the kernels of the CPU in it."""

import pytest
import torch

from mmlk.ops import cuda
from mmlk.ops.dcls import construct
from mmlk.ops.dcls import cuda as dcls
from mmlk.ops.depthwise import cpu as depthwise
from mmlk.ops.depthwise import schema as depthwise_schema
from mmlk.ops.inception import cpu as inception
from mmlk.ops.inception import schema as inception_schema
from mmlk.ops.large_kernel import cpu as large_kernel
from mmlk.ops.large_kernel import schema as large_kernel_schema

LONG = ((4, 1, 9, 3), (4, 1, 3, 9), (4, 1, 3, 3))
# Registered operator, its computation, shapes of the parameters, other arguments.
CASES = {
    'depthwise_conv2d': (
        depthwise_schema.depthwise_conv2d,
        depthwise.compute,
        ((4, 1, 3, 3), (4,)),
        ([2, 1],),
    ),
    'inception_dwconv2d': (
        inception_schema.inception_dwconv2d,
        inception.compute,
        ((1, 1, 3, 3), (1,), (1, 1, 1, 5), (1,), (1, 1, 5, 1), (1,)),
        (),
    ),
    'large_kernel_branches': (
        large_kernel_schema.large_kernel_branches,
        large_kernel.compute_branches,
        LONG,
        (),
    ),
    'large_kernel_sum': (
        large_kernel_schema.large_kernel_sum,
        large_kernel.compute_sum,
        (*LONG, (4,)),
        (),
    ),
}


def results(function, shapes, others, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)

    def leaf(*shape):
        return torch.randn(shape, generator=generator)

    leaves = [leaf(2, 4, 6, 7).to(dtype), *(leaf(*shape) for shape in shapes)]
    leaves = [each.requires_grad_() for each in leaves]
    y = function(*leaves, *others)
    outputs = [y] if isinstance(y, torch.Tensor) else list(y)
    cotangents = [leaf(*each.shape).to(each.dtype) for each in outputs]
    return [*outputs, *torch.autograd.grad(outputs, leaves, cotangents)]


@pytest.mark.parametrize('name', CASES)
def test_the_node_is_the_registered_operator(name):
    registered, compute, shapes, others = CASES[name]
    run = cuda.eager(name, registered, compute)
    got, want = results(run, shapes, others), results(registered, shapes, others)
    assert type(got[0].grad_fn).__name__ == f'{name}Backward'  # a node, not the operator's
    assert len(got) == len(want) and all(map(torch.equal, got, want))
    with torch.no_grad():
        first, *parameters = (torch.randn(2, 4, 6, 7), *map(torch.randn, shapes))
        y = run(first, *parameters, *others)
        assert (y if isinstance(y, torch.Tensor) else y[0]).grad_fn is None


@pytest.mark.parametrize('name', CASES)
def test_maps_follow_autocast_and_parameters_do_not(name):
    registered, compute, shapes, others = CASES[name]
    run = cuda.eager(name, registered, compute)
    dtype = torch.get_autocast_dtype('cuda')
    torch.set_autocast_dtype('cuda', torch.bfloat16)
    torch.set_autocast_enabled('cuda', True)  # torch.autocast leaves it off where there is no GPU
    try:
        got = results(run, shapes, others)
    finally:
        torch.set_autocast_enabled('cuda', False)
        torch.set_autocast_dtype('cuda', dtype)
    assert got[0].dtype == torch.bfloat16
    assert all(each.dtype == torch.float32 for each in got[-len(shapes) - 1 :])


def test_the_node_of_the_construction_is_the_registered_operator(monkeypatch):
    monkeypatch.setattr(dcls, 'refusal_of_window', lambda *_: 'there is no GPU')
    weight, positions = torch.randn(3, 1, 4), torch.randn(2, 3, 1, 4)
    leaves = [each.requires_grad_() for each in (weight, positions)]
    kernel = dcls._run(*leaves, None, (5, 5), 'v1')
    assert type(kernel.grad_fn).__name__ == 'dcls_kernel_fusedBackward'
    want = construct.construct(*leaves, None, (5, 5), 'v1')
    assert torch.equal(kernel, want)
