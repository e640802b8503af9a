"""What the CUDA backends share: predicates, and the way to Triton kernels, which are loaded when needed.

The module holds no kernel and imports no Triton. Its predicates look at types and shapes only, so
`torch.compile` traces through them; the kernels run inside registered operators, which it does not
look into. Where kernels cannot run although a registered operator was called by name (float64, old
devices), the torch composition of the CPU backend computes.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable

import torch
from torch import Tensor

from mmlk.ops import compat, dispatch, library

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
LEAST_TRITON = (3, 4)  # tuples and slices of them inside kernels
LARGEST_IMAGE = 2**31 - 1  # elements of one image; kernels count inside it with 32 bits


@functools.cache
def _refusal_of_triton(index: int | None) -> str | None:
    if torch.version.hip is not None:
        return 'the kernels are not supported on HIP'
    if importlib.util.find_spec('triton') is None:
        return 'triton is not installed'
    version = importlib.import_module('triton').__version__
    if tuple(int(each) for each in version.split('.')[:2]) < LEAST_TRITON:
        return f'triton {version} is older than {".".join(map(str, LEAST_TRITON))}'
    return importlib.import_module('mmlk.ops.triton.runtime').unavailable(index)


@compat.assume_constant
def refusal_of_triton(index: int | None) -> str | None:
    """Reason why Triton kernels cannot run on CUDA device ``index``, or None."""
    return _refusal_of_triton(index)


def refusal_of_map(x: Tensor) -> str | None:
    """Reason why no Triton kernel takes the CUDA map ``x``, or None."""
    if x.dtype not in DTYPES:
        return f'the input is {x.dtype}'
    if x.shape[1] * x.shape[2] * x.shape[3] > LARGEST_IMAGE:
        return f'one image has more than {LARGEST_IMAGE} elements'
    return refusal_of_triton(x.device.index)


def refusal(x: Tensor, *args) -> str | None:
    """Predicate of the 'triton' backends: they take every shape of the types they know."""
    operands = [each for each in args if isinstance(each, Tensor)]
    return dispatch.refusal_for_device(x, 'cuda', *operands) or refusal_of_map(x)


def implement(operator: str, kernels: str, function: str, composition: Callable) -> Callable:
    """Register a Triton launcher as the CUDA computation of ``mmlk::operator``, and return it.

    Args:
        operator: Registered name; of a gradient (``.._backward``) the map is the second argument.
        kernels: Module of the launcher, imported at its first call.
        function: Name of the launcher there.
        composition: Computation in torch for what the kernels cannot take.
    """
    position = 1 if operator.endswith('_backward') else 0

    @functools.cache
    def launcher() -> Callable:
        return getattr(importlib.import_module(kernels), function)

    def compute(*args):
        if refusal_of_map(args[position]) is not None:
            return composition(*args)
        return launcher()(*args)

    library.implement(operator, 'CUDA', compute)
    return compute


def eager(operator: str, registered: Callable, compute: Callable) -> Callable:
    """``run`` of a backend: eager calls spare the registered operator, which costs more than a launch.

    Args:
        operator: Registered name.
        registered: The operator, for compilers, dispatch modes and kinds of tensors.
        compute: What `implement` returned for it.
    """
    apply = library.registered_node(operator, compute)
    without_autocast = compat.without_autocast('AutocastCUDA')

    def run(x: Tensor, *args):
        if dispatch.needs_dispatcher(x, autocast=False):
            return registered(x, *args)  # autocast follows its own rule
        call = apply if torch.is_grad_enabled() else compute
        if not torch.is_autocast_enabled('cuda'):
            return call(x, *args)
        if x.dtype == torch.float32:
            x = x.to(torch.get_autocast_dtype('cuda'))
        with without_autocast():
            return call(x, *args)

    return run
