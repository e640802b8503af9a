"""Operators registered with the PyTorch dispatcher, and autograd nodes written by hand.

A registered operator (`define`, `implement`) is what compilers, autocast and dispatch modes see. A
`node` is the same mathematics for eager calls that none of them has to see. Both refuse second
derivatives in the same words.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mmlk.ops import compat

_LIBRARY = torch.library.Library('mmlk', 'FRAGMENT')
_GRADIENTS: dict[str, tuple[Callable, Callable]] = {}  # what to save, and the formula


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
    torch.library.register_fake(f'mmlk::{name}', _of_shapes_alone(name, fake), lib=_LIBRARY)
    operator = getattr(torch.ops.mmlk, name).default
    if backward is None:
        torch.library.register_autograd(f'mmlk::{name}', _refuse_gradient(name), lib=_LIBRARY)
    else:
        if setup_context is not None:
            _GRADIENTS[name] = setup_context, backward
        torch.library.register_autograd(
            f'mmlk::{name}', backward, setup_context=setup_context, lib=_LIBRARY
        )
        devices = (('cpu', 'AutocastCPU'), ('cuda', 'AutocastCUDA')) if autocast else ()
        for device, key in devices:
            _LIBRARY.impl(name, _autocast(operator, device, key), key)
    return operator


def _of_shapes_alone(name: str, fake: Callable) -> Callable:
    """``fake`` that raises for operands with values: PyTorch calls it if only one is on meta."""

    @functools.wraps(fake)
    def checked(*args: Any, **options: Any) -> Any:
        for each in args:
            if type(each) in PLAIN and not each.is_meta:
                raise RuntimeError(
                    f'{name}: some operands are on meta and have no values; bring them to '
                    f'{each.device}, where others are, before the call'
                )
        return fake(*args, **options)

    return checked


def implement(name: str, device: str, kernel: Callable) -> None:
    """Register ``kernel`` as the computation of ``mmlk::name`` on ``device`` ('CPU', 'CUDA')."""

    # PyTorch calls a device's kernel even if the map is on meta and another operand is not.
    on_meta = False if device in ('CPU', 'CUDA') else None

    @functools.wraps(kernel)
    def checked(*args: Any) -> Any:
        check_memory(name, args, on_meta)
        return kernel(*args)

    _LIBRARY.impl(name, checked, device)


def registered_node(name: str, kernel: Callable) -> Callable:
    """`node` of the operator ``mmlk::name`` with the gradient that `define` got.

    Args:
        name: Operator with a gradient.
        kernel: Its computation on the device that the node is for.
    """
    setup_context, backward = _GRADIENTS[name]

    def forward(ctx: Any, *args: Any) -> Any:
        result = kernel(*args)
        setup_context(ctx, args, result)
        return result

    return node(name, forward, backward)


PLAIN = (Tensor, torch.nn.Parameter)


def check_memory(name: str, args: Sequence, on_meta: bool | None = None) -> None:
    """Raise where an operand has elements but no memory: torch's kernels too would crash or invent it.

    Args:
        name: Of the operator, for the message.
        args: Its arguments; sequences among them are looked into.
        on_meta: Whether the first operand is on meta, if it is not among ``args``.

    Raises:
        RuntimeError: If the storage of an operand was freed, as offloading does, or one is on meta but
            the first is not.
    """
    for each in args:
        if on_meta is None and isinstance(each, Tensor):
            on_meta = each.is_meta
        if type(each) not in PLAIN:
            if isinstance(each, tuple | list):
                check_memory(name, each, on_meta)
            continue
        # One question answers for nearly all: tensors on meta, freed and empty ones have no address.
        if each.data_ptr() != 0:
            continue
        if each.is_meta and not on_meta:
            raise RuntimeError(
                f'{name}: an operand, {each.dtype} {tuple(each.shape)}, is on meta and has no '
                'values; bring them to the device of the map before the call'
            )
        if each.is_cpu and each.numel() > 0:
            raise RuntimeError(
                f'{name}: the storage of an operand, {each.dtype} {tuple(each.shape)}, was freed; '
                'bring its values back before the call'
            )


def node(name: str, forward: Callable, backward: Callable) -> Callable:
    """An autograd node written by hand, with a gradient but no gradient of that gradient.

    Args:
        name: Operator or block, for messages.
        forward: ``forward(ctx, *args)`` returns the result; it passes what the gradient needs to
            ``ctx.save_for_backward``, among it every argument that enters more than linearly.
        backward: ``backward(ctx, *grads)`` returns gradients of the leading arguments, in their order;
            those that are not asked for (``ctx.needs_input_grad``) are dropped.

    Returns:
        ``apply(*args)``.
    """

    def checked_backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        with torch.no_grad():
            found = backward(ctx, *grads)
        wanted = ctx.needs_input_grad
        found = [each if want else None for each, want in zip(found, wanted)]
        found += [None] * (len(wanted) - len(found))
        if torch.is_grad_enabled():  # create_graph: somebody may differentiate once more
            return _refuse_from_here(name, found, (*grads, *ctx.saved_tensors, *_leaves(ctx)))
        return tuple(found)

    methods = dict(forward=staticmethod(forward), backward=staticmethod(checked_backward))
    node: Any = types.new_class(
        name, (torch.autograd.Function,), {}, lambda body: body.update(methods)
    )
    return node.apply


def _leaves(ctx: Any) -> list[Tensor]:
    """Arguments of a node that are leaves of the graph, saved or not."""
    edges = [edge for edge, _ in ctx.next_functions if edge is not None]
    return [edge.variable for edge in edges if hasattr(edge, 'variable')]


def _refuse_from_here(
    name: str, results: Sequence[Tensor | None], sources: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """``results`` as functions of ``sources`` whose gradient raises.

    With an edge to every source a second derivative raises whoever asks for it. torch's
    ``once_differentiable`` has edges to the incoming gradients only, and loses it silently elsewhere.
    """
    given = [each for each in results if each is not None]
    sources = [each for each in sources if each is not None and each.requires_grad]
    linked = iter(_Refusal.apply(name, len(given), *given, *sources))
    return tuple(None if each is None else next(linked) for each in results)


class _Refusal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, name: str, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.operator = name
        return tuple(each.view_as(each) for each in tensors[:count])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError(_refusal(ctx.operator))


def _refuse_gradient(name: str) -> Callable:
    def refuse(ctx: Any, *grads: Tensor) -> None:
        raise RuntimeError(_refusal(name))

    return refuse


def _refusal(name: str) -> str:
    return f"{name}: second derivatives are not available here, use backend='reference'"


def _autocast(operator: Callable, device: str, key: str) -> Callable:
    without_autocast = compat.without_autocast(key)

    def call(x: Tensor, *args: Any) -> Any:
        if x.dtype == torch.float32:
            x = x.to(torch.get_autocast_dtype(device))
        with without_autocast():
            return operator(x, *args)

    return call
