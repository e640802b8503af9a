"""Which code computes an operator, and why.

An operator has backends in a fixed order of preference. A backend's ``refuses`` looks at the same
arguments as the operator and returns the reason why it cannot take them, or None. `choose` takes
the first backend without a reason, `explain` prints the reasons: both ask the same predicates, so
they cannot disagree. The environment variable ``MMLK_BACKEND`` forces one backend for every
operator that has it; a forced backend that refuses raises with its reason.

The module also registers operators with the PyTorch dispatcher (`define`, `implement`), so that a
backend of another device is one `implement` and one `register` away.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import NamedTuple

import torch

PREFERENCE = ('triton', 'cpu', 'separable', 'reference')
ENVIRONMENT = 'MMLK_BACKEND'


class Backend(NamedTuple):
    """One way to compute an operator.

    Args:
        name: One of `PREFERENCE`.
        run: The computation, with the operator's arguments.
        refuses: Reason why it cannot take these arguments, or None.
        describe: Further words on what it would do with them, for `explain`.
    """

    name: str
    run: Callable[..., torch.Tensor]
    refuses: Callable[..., str | None]
    describe: Callable[..., str] | None = None


_BACKENDS: dict[str, tuple[Backend, ...]] = {}


def register(operator: str, backend: Backend) -> None:
    """Add ``backend`` to ``operator``, replacing an earlier one of the same name."""
    if backend.name not in PREFERENCE:
        raise ValueError(f'register: backend {backend.name!r} is not one of {PREFERENCE}')
    others = [each for each in _BACKENDS.get(operator, ()) if each.name != backend.name]
    # One assignment of a finished tuple: a concurrent reader sees the old list or the new one.
    _BACKENDS[operator] = tuple(
        sorted([*others, backend], key=lambda each: PREFERENCE.index(each.name))
    )


def backends(operator: str) -> tuple[str, ...]:
    """Names of the backends of ``operator``, preferred first."""
    return tuple(each.name for each in _BACKENDS[operator])


def choose(operator: str, *args, backend: str | None = None) -> Callable[..., torch.Tensor]:
    """The computation to use for ``operator`` on ``args``.

    Args:
        operator: Registered name.
        args: The operator's positional arguments.
        backend: Name of the backend to use; None takes ``MMLK_BACKEND`` or the first that can.

    Raises:
        ValueError: if the named backend does not exist.
        RuntimeError: if the named backend refuses these arguments, with its reason.
    """
    candidates = _BACKENDS[operator]
    name = backend or os.environ.get(ENVIRONMENT)
    if name:
        for each in candidates:
            if each.name == name:
                reason = each.refuses(*args)
                if reason is not None:
                    raise RuntimeError(f'{operator}: backend {name!r} was asked for but {reason}')
                return each.run
        if backend or name not in PREFERENCE:
            raise ValueError(
                f'{operator}: unknown backend {name!r}, '
                f'choose from {[each.name for each in candidates]}'
            )
    for each in candidates:
        if each.refuses(*args) is None:
            return each.run
    raise RuntimeError(f'{operator}: no backend takes these arguments\n' + explain(operator, *args))


def explain(operator: str | Callable, *args, backend: str | None = None, **kwargs) -> str:
    """Say, backend by backend, which one a call would use and why the others do not apply.

    Args:
        operator: The public function, or its name.
        args: Its arguments, positional or by name.
        backend: As in the call.

    Returns:
        One line per backend: ``name: used`` or ``name: not used, reason``.
    """
    name = operator if isinstance(operator, str) else operator.__name__
    if name not in _BACKENDS:
        raise ValueError(
            f'explain: {name!r} is not an operator with backends, choose from {sorted(_BACKENDS)}'
        )
    args = (*args, *kwargs.values())
    forced = backend or os.environ.get(ENVIRONMENT)
    if forced not in backends(name):
        forced = None
    lines, taken = [], False
    for each in _BACKENDS[name]:
        reason = each.refuses(*args)
        if reason is not None:
            lines.append(f'{each.name}: not used, {reason}')
        elif forced and each.name != forced:
            lines.append(f'{each.name}: not used, {forced!r} is forced')
        elif taken:
            lines.append(f'{each.name}: not used, an earlier backend was')
        else:
            taken = True
            detail = f' ({each.describe(*args)})' if each.describe else ''
            lines.append(f'{each.name}: used{detail}')
    return '\n'.join(lines)


def never_refuses(*_args) -> None:
    """The predicate of the reference backends: plain torch takes whatever torch takes."""
    return None


def exporting() -> str | None:
    """Reason why a graph under export must hold plain torch operators only, or None."""
    # The function torch.compiler.is_exporting() is constantly true under torch.compile.
    if getattr(torch.compiler, '_is_exporting_flag', False):
        return 'torch.export is running and its graph shall hold plain torch operators'
    if torch.jit.is_tracing():  # ONNX's older exporter traces, its newer one goes by torch.export
        return 'torch.jit or ONNX tracing is running and its graph shall hold plain operators'
    return None


def refuses_device(x: torch.Tensor, device: str) -> str | None:
    """Reason why a backend of ``device`` cannot take ``x``, or None."""
    if x.device.type != device:
        return f'the input is on {x.device.type}'
    return exporting() or _transformed()


def watched(x: torch.Tensor) -> bool:
    """Whether a compiler, autocast, a dispatch mode or a kind of tensor must see an operator.

    If nothing watches, a backend may call its kernels through a `torch.autograd.Function` of its
    own: autograd through a registered operator costs half a millisecond of Python a call, more than
    the arithmetic of most small maps.
    """
    return (
        torch.compiler.is_compiling()
        or x.is_meta
        or type(x) not in (torch.Tensor, torch.nn.Parameter)
        or torch.is_autocast_enabled(x.device.type)
        or torch.utils._python_dispatch._get_current_dispatch_mode() is not None
    )


def _transformed() -> str | None:
    if (
        not torch.compiler.is_dynamo_compiling()
        and torch._C._functorch.peek_interpreter_stack() is not None
    ):
        return 'a torch.func transform is active'
    return None


_LIBRARY = torch.library.Library('mmlk', 'FRAGMENT')


def define(
    name: str,
    schema: str,
    *,
    fake: Callable,
    backward: Callable | None = None,
    setup_context: Callable | None = None,
    autocast: bool = True,
) -> Callable:
    """Register ``mmlk::name`` with its fake, autograd and autocast rules; kernels come later.

    Under autocast the floating tensors named by the first argument only (the activations) are cast:
    kernels read parameters in their own precision, which saves a cast and keeps their gradients
    in it.

    Args:
        name: Operator name inside the ``mmlk`` namespace.
        schema: Arguments and result, as in native_functions.yaml.
        fake: Result of the right shape, dtype and strides from fake tensors.
        backward: Gradient formula in terms of a registered operator; without one, asking for a
            gradient raises (torch alone would warn and return a wrong one).
        setup_context: Saves what ``backward`` needs.
        autocast: Whether the first argument follows autocast; parameters alone should not.

    Returns:
        The callable ``torch.ops.mmlk.name.default``.
    """
    _LIBRARY.define(f'{name}{schema}', tags=(torch.Tag.pt2_compliant_tag,))
    torch.library.register_fake(f'mmlk::{name}', fake, lib=_LIBRARY)
    operator = getattr(torch.ops.mmlk, name).default
    if backward is None:
        torch.library.register_autograd(f'mmlk::{name}', _no_second_derivative(name), lib=_LIBRARY)
    else:
        torch.library.register_autograd(
            f'mmlk::{name}', backward, setup_context=setup_context, lib=_LIBRARY
        )
        devices = (('cpu', 'AutocastCPU'), ('cuda', 'AutocastCUDA')) if autocast else ()
        for device, key in devices:
            _LIBRARY.impl(name, _autocast(operator, device, key), key)
    return operator


def _no_second_derivative(name: str) -> Callable:
    def refuse(ctx, *grads):
        raise RuntimeError(
            f"{name}: second derivatives are not available here, use backend='reference'"
        )

    return refuse


def first_derivative_only(name: str) -> Callable:
    """Decorator of the ``backward`` of an `autograd.Function` that is written out by hand.

    A gradient of its gradients raises. torch's ``once_differentiable`` does so only where the incoming
    gradient has a history of its own, and loses the second derivative silently elsewhere.
    """

    def decorate(backward: Callable) -> Callable:
        @functools.wraps(backward)
        def wrapper(ctx, *grads):
            with torch.no_grad():
                results = backward(ctx, *grads)
            if not torch.is_grad_enabled():
                return results
            message = f"{name}: second derivatives are not available here, use backend='reference'"
            refusal = torch._C._functions.DelayedError(message.encode(), len(results))
            return refusal(
                *(None if each is None else each.detach().requires_grad_() for each in results)
            )

        return wrapper

    return decorate


def _autocast(operator: Callable, device: str, key: str) -> Callable:
    keyset = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def call(x, *args):
        if x.dtype == torch.float32:
            x = x.to(torch.get_autocast_dtype(device))
        with torch._C._ExcludeDispatchKeyGuard(keyset):
            return operator(x, *args)

    return call


def implement(name: str, device: str, kernel: Callable) -> None:
    """Register ``kernel`` as the computation of ``mmlk::name`` on ``device`` ('CPU', 'CUDA')."""
    _LIBRARY.impl(name, kernel, device)
