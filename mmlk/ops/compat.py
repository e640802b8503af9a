"""Names of torch that it does not promise to keep, each under a name of ours.

Read on torch 2.4.0 and run on 2.11.0. Where a name is gone, the replacement takes the slower or safer of
two ways, so that an operator goes through PyTorch's dispatcher rather than past it. What other packages
of the stack do not promise is in `mmlk.compat`; what Triton does not, in `mmlk.ops.triton.compat`.
"""

from __future__ import annotations

import ctypes
import functools
import glob
import operator
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.multiprocessing.reductions import StorageWeakRef as StorageWeakRef
from torch.nn.modules import module as _modules
from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode

_Function = TypeVar('_Function', bound=Callable)


def _one() -> int:
    return 1


count_dispatch_modes: Callable[[], int] = getattr(torch._C, '_len_torch_dispatch_stack', _one)
"""Dispatch modes, such as FLOP counters, that are active; taken for one where torch cannot tell."""

count_function_modes: Callable[[], int] = getattr(torch._C, '_len_torch_function_stack', _one)
"""Modes that see calls of torch's functions, such as a default device; taken for one likewise."""

top_transform: Callable[[], Any] = getattr(
    getattr(torch._C, '_functorch', None), 'peek_interpreter_stack', _one
)
"""The innermost active transform of ``torch.func``, or None."""


_VARIABLES = getattr(os.environ, '_data', None)
_IS_POSIX = isinstance(_VARIABLES, dict) and all(type(each) is bytes for each in _VARIABLES)


def environment(name: str) -> str | None:
    """``os.environ.get(name)``, in a tenth of its time: operators ask for their switches in each call.

    CPython keeps the variables encoded in a dict of its own; checked on 3.10 to 3.12.
    """
    if not _IS_POSIX:
        return os.environ.get(name)
    value = _VARIABLES.get(name.encode())
    return None if value is None else os.fsdecode(value)


def in_forward_mode() -> bool:
    """Whether a level of forward-mode differentiation is open, in which tensors may have tangents."""
    return getattr(forward_ad, '_current_level', 0) >= 0


def is_exporting() -> bool:
    """Whether ``torch.export`` traces; the public function is constantly true under torch.compile."""
    return bool(getattr(torch.compiler, '_is_exporting_flag', False))


_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd


def is_composite(function: Any) -> bool:
    """Whether an overload of torch is made of others, as it is written in C++."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(
        function.name(), 'CompositeImplicitAutograd'
    )


def decomposed(function: Any, *args: Any, **options: Any) -> Any:
    """``function`` of the arguments by the overloads that it is made of; `is_composite` must hold."""
    return function._op_dk(_COMPOSITE, *args, **options)


def is_mutable(function: Any) -> bool:
    """Whether an overload of torch writes to an argument."""
    return function._schema.is_mutable


def written_arguments(function: Any, args: tuple, options: dict) -> list:
    """The arguments that it writes to: tensors, and lists of them."""
    return [
        args[index] if index < len(args) else options.get(argument.name)
        for index, argument in enumerate(function._schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]


def computed_on_cpu(function: Any, *args: Any, **options: Any) -> Any:
    """``function`` of the arguments by the code that is registered for the CPU."""
    return function._op_dk(torch._C.DispatchKey.CPU, *args, **options)


def assume_constant(function: _Function) -> _Function:
    """Have the compiler take what ``function`` returns for a constant of the graph.

    ``torch.compiler.assume_constant_result`` does the same, and imports the compiler.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]  # read by the compiler
    return function


def without_autocast(key: str) -> Callable[[], AbstractContextManager]:
    """Makes a context in which the dispatch key ``key`` ('AutocastCPU', ..) is left out."""
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))
    return functools.partial(torch._C._ExcludeDispatchKeyGuard, keys)


_GLOBAL_HOOKS = tuple(
    getattr(_modules, f'_global_{kind}_hooks', {})
    for kind in ('forward', 'forward_pre', 'backward', 'backward_pre')
)


def parts_of(module: torch.nn.Module) -> tuple[dict, dict, dict]:
    """The dicts that hold parameters, buffers and modules of a module, by name."""
    return module._parameters, module._buffers, module._modules


tables_in: Callable[[dict], tuple[dict, dict, dict]] = operator.itemgetter(
    '_parameters', '_buffers', '_modules'
)
"""`parts_of` the module whose attributes are given, without a call of Python."""


HOOKS = ('_forward_hooks', '_forward_pre_hooks', '_backward_hooks', '_backward_pre_hooks')
"""Attributes that hold the hooks of a module: a dict each."""


def has_global_hooks() -> bool:
    """Whether hooks are registered for the calls of all modules."""
    return any(_GLOBAL_HOOKS)


def explicit_padding(conv: torch.nn.Module) -> list[int]:
    """Padding of a convolution as ``F.pad`` takes it, for every padding mode and ``'same'``."""
    return conv._reversed_padding_repeated_twice  # type: ignore[return-value]  # a list of it


# ------------------------------------------------------------------------------------- oneDNN


@functools.cache
def _has_onednn() -> bool:
    names = ('_linear_pointwise', '_reorder_linear_weight')
    return torch.backends.mkldnn.is_available() and all(
        hasattr(torch.ops.mkldnn, each) for each in names
    )


def has_onednn() -> bool:
    """Whether oneDNN's products, which torch's compiler uses, are there and may be used."""
    return torch.backends.mkldnn.enabled and _has_onednn()


def onednn_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gelu: bool = False,
    residual: Tensor | None = None,
) -> Tensor:
    """``[residual +] act(x W^T + b)``; `has_onednn` must hold.

    It takes strided matrices but reads a bias as if it were dense.

    Args:
        x: (M, K).
        weight: (N, K), plain or from `onednn_pack`.
        bias: (N,).
        gelu: Apply the exact GELU.
        residual: (M, N); not together with ``gelu``.
    """
    bias = None if bias is None else bias.contiguous()
    product = torch.ops.mkldnn._linear_pointwise
    if residual is not None:
        return product.binary(x, residual, weight, bias, 'add')
    return product(x, weight, bias, *(('gelu', [], 'none') if gelu else ('none', [], '')))


def onednn_pack(weight: Tensor, rows: int) -> Tensor:
    """``weight`` (N, K) in oneDNN's order for products with about ``rows`` rows."""
    return torch.ops.mkldnn._reorder_linear_weight(weight.flatten(1).contiguous(), rows)


# ------------------------------------------------------------------------------------- OpenMP


def openmp_parallel() -> Callable[..., None] | None:
    """``GOMP_parallel(function, argument, threads, flags)`` of torch's own OpenMP runtime, or None.

    torch's wheels for Linux bring GNU's; elsewhere another runtime is used, which has no such entry.
    """
    found = glob.glob(os.path.join(os.path.dirname(torch.__file__), 'lib', 'libgomp*'))
    try:
        enter = ctypes.CDLL(found[0] if found else 'libgomp.so.1').GOMP_parallel
    except (OSError, AttributeError):
        return None
    enter.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    enter.restype = None
    return enter


def freeze_compiled_weights() -> None:
    """Have torch.compile take weights for constants wherever gradients are off, in this process.

    Needs ``torch._inductor.config.freezing``.
    """
    from torch._inductor import config

    config.freezing = True
