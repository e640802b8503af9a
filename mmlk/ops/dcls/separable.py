"""Backend 'separable' of the DCLS construction: one profile per axis, on any device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmlk.ops import dispatch, library
from mmlk.ops.dcls import schema
from mmlk.ops.dcls.construct import construct, construct_backward
from mmlk.ops.jit import recording


def _forward(ctx, weight, positions, sigma, kernel_size, version) -> Tensor:
    ctx.save_for_backward(weight, positions, sigma)
    ctx.settings = kernel_size, version
    return construct(weight, positions, sigma, kernel_size, version)


def _backward(ctx, grad: Tensor) -> Sequence[Tensor]:
    return construct_backward(grad, *ctx.saved_tensors, *ctx.settings)


_apply = library.node('dcls_kernel', _forward, _backward)


def _run(
    weight: Tensor,
    positions: Tensor,
    sigma: Tensor | None,
    kernel_size: Sequence[int],
    version: str,
) -> Tensor:
    plain = all(
        each is None or type(each) in (Tensor, nn.Parameter) for each in (weight, positions, sigma)
    )
    # Autocast leaves parameters alone, so it is no reason to go through the dispatcher.
    if plain and not torch.compiler.is_compiling() and not recording.is_watched():
        return _apply(weight, positions, sigma, kernel_size, version)
    return schema.dcls_kernel(weight, positions, sigma, kernel_size, version)


def _refusal(weight: Tensor, positions: Tensor, sigma: Tensor | None, *_args) -> str | None:
    return dispatch.refusal_for_device(weight, weight.device.type, positions, sigma)


library.implement('dcls_kernel_backward', 'CompositeExplicitAutograd', construct_backward)
library.implement('dcls_kernel', 'CompositeExplicitAutograd', construct)
for _name in ('dcls_kernel1d', 'dcls_kernel2d', 'dcls_kernel3d'):
    dispatch.register(_name, dispatch.Backend('separable', _run, _refusal))
