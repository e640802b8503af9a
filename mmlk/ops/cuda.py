"""CUDA backend: predicates, and the way to the Triton kernels, which are loaded when first needed.

The module holds no kernel and imports no Triton. Its predicates look at types and shapes only, so
`torch.compile` traces through them; the kernels run inside registered operators, which it does not
look into. Where kernels cannot run although a registered operator was called by name (float64, old
devices), the torch composition of the CPU backend takes over.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor

from mmlk.ops import branches, cpu, dispatch, operators

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LEAST_TRITON = (3, 4)  # tuples and slices of them inside kernels
LARGEST_IMAGE = 2**31 - 1  # elements of one image; kernels count inside it with 32 bits

# registered operator -> (module of mmlk.ops.triton, its function, torch composition)
KERNELS = {
    'depthwise_conv2d': ('depthwise', 'forward', cpu._depthwise),
    'depthwise_conv2d_backward': ('depthwise', 'backward', cpu._depthwise_backward),
    'inception_dwconv2d': ('inception', 'forward', cpu._inception),
    'inception_dwconv2d_backward': ('inception', 'backward', cpu._inception_backward),
    'large_kernel_branches': ('large_kernel', 'branches', branches.compose_branches),
    'large_kernel_sum': ('large_kernel', 'total', branches.compose_sum),
    'large_kernel_backward': ('large_kernel', 'backward', branches.compose_backward),
}


@functools.cache
def _unavailable(index: int | None) -> str | None:
    if importlib.util.find_spec('triton') is None:
        return 'triton is not installed'
    version = importlib.import_module('triton').__version__
    if tuple(int(each) for each in version.split('.')[:2]) < LEAST_TRITON:
        return f'triton {version} is older than {".".join(map(str, LEAST_TRITON))}'
    return importlib.import_module('mmlk.ops.triton.runtime').unavailable(index)


def unavailable(index: int | None) -> str | None:
    """Reason why Triton kernels cannot run on CUDA device ``index``, or None."""
    return _unavailable(index)


# What torch.compiler.assume_constant_result sets, without importing the compiler.
unavailable._dynamo_marked_constant = True


def incapable(x: Tensor) -> str | None:
    """Reason why no Triton kernel takes the CUDA map ``x``, or None."""
    if x.dtype not in DTYPES:
        return f'the input is {x.dtype}'
    if x.shape[1] * x.shape[2] * x.shape[3] > LARGEST_IMAGE:
        return f'one image has more than {LARGEST_IMAGE} elements'
    return unavailable(x.device.index)


def refuses(x: Tensor, *_args) -> str | None:
    """Predicate of the 'triton' backends: they take every shape of the types they know."""
    return dispatch.refuses_device(x, 'cuda') or incapable(x)


def _kernel(module: str, function: str, composition: Callable, position: int) -> Callable:
    """Computation of a registered operator whose argument ``position`` is the map."""

    def compute(*args):
        if incapable(args[position]) is not None:
            return composition(*args)
        return getattr(importlib.import_module(f'mmlk.ops.triton.{module}'), function)(*args)

    return compute


for _name, (_module, _function, _composition) in KERNELS.items():
    dispatch.implement(
        _name,
        'CUDA',
        _kernel(_module, _function, _composition, 1 if _name.endswith('_backward') else 0),
    )
dispatch.register(
    'depthwise_conv2d', dispatch.Backend('triton', operators.depthwise_conv2d, refuses)
)
dispatch.register(
    'inception_dwconv2d', dispatch.Backend('triton', operators.inception_dwconv2d, refuses)
)
dispatch.register(
    'large_kernel_branches', dispatch.Backend('triton', branches.branches_operator, refuses)
)
dispatch.register('large_kernel_sum', dispatch.Backend('triton', branches.sum_operator, refuses))
