"""Convolution of patches that do not overlap: the downsampling between stages, a matrix product.

With a patch laid out as a row, the gradients too are products in their best order
(`mmlk.ops.dense.products`); torch's convolution takes up to twice as long for them on a CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mmlk.ops import dispatch, jit, library
from mmlk.ops.dense import products
from mmlk.ops.dense.loops import linear
from mmlk.ops.dense.loops_panels import pack
from mmlk.ops.jit.address import can_address
from mmlk.ops.layout.loops import patches
from mmlk.ops.maps import channels_last, layout
from mmlk.ops.memory import keep_freed_memory
from mmlk.ops.modules import NotScriptable
from mmlk.ops.packed_weights import PackedWeights
from mmlk.ops.reference import patch_conv2d_reference


def patch_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    copies: PackedWeights | None = None,
    backend: str | None = None,
) -> Tensor:
    """Each patch of the kernel's size, side by side, times the kernel.

    `patch_conv2d_reference` is the definition. Rows and columns that fill no patch are left out. The
    result has the memory layout of ``x``.

    Args:
        x: (N, C, H, W).
        weight: (O, C, k, l).
        bias: (O,).
        copies: Keeps a copy of the weight in the order in which it is read, for inference.
        backend: Name of the code to use; None chooses (`mmlk.ops.explain` says what).

    Returns:
        (N, O, H // k, W // l).

    Raises:
        ValueError: if the channels do not fit.
    """
    args = _arguments(x, weight, bias, copies=copies)
    return dispatch.run('patch_conv2d', *args, backend=backend)


def _arguments(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, copies: PackedWeights | None = None
) -> tuple:
    if not torch.jit.is_tracing() and (
        x.dim() != 4 or weight.dim() != 4 or weight.shape[1] != x.shape[1]
    ):
        raise ValueError(
            f'patch_conv2d: x {tuple(x.shape)} and weight {tuple(weight.shape)} are '
            'not (N, C, H, W) and (O, C, k, l)'
        )
    return x, weight, bias, copies


def _reference(x: Tensor, weight: Tensor, bias: Tensor | None, _copies) -> Tensor:
    return patch_conv2d_reference(x, weight, bias)


def _forward(ctx, rows, matrix, bias) -> Tensor:
    ctx.save_for_backward(rows, matrix)
    return products.linear(rows, matrix, bias)


def _backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
    rows, matrix = ctx.saved_tensors
    wanted, grad = ctx.needs_input_grad, grad.contiguous()
    grad_rows = products.input_gradient(grad, matrix) if wanted[0] else None
    if not wanted[1]:
        return grad_rows, None, grad.sum(0) if wanted[2] else None
    return grad_rows, *products.weight_gradient(grad, rows, wanted[2])[:2]


_product = library.node('patch_conv2d', _forward, _backward)


def _run(x: Tensor, weight: Tensor, bias: Tensor | None, copies: PackedWeights | None) -> Tensor:
    keep_freed_memory()
    if copies is not None and not torch.is_grad_enabled():
        return _repeatedly(x, weight, bias, copies)
    n, c, _, _ = x.shape
    kh, kw = weight.shape[2:]
    h, w = x.shape[2] // kh, x.shape[3] // kw
    cells = x[:, :, : h * kh, : w * kw].reshape(n, c, h, kh, w, kw)
    if channels_last(weight):
        matrix, cells = weight.permute(0, 2, 3, 1).flatten(1), cells.permute(0, 2, 4, 3, 5, 1)
    else:
        matrix, cells = weight.flatten(1), cells.permute(0, 2, 4, 1, 3, 5)
    rows = cells.reshape(n * h * w, c * kh * kw)
    y = _product(rows, matrix, bias).view(n, h, w, -1).permute(0, 3, 1, 2)
    return y.contiguous(memory_format=layout(x))


def _repeatedly(x: Tensor, weight: Tensor, bias: Tensor | None, copies: PackedWeights) -> Tensor:
    """The same with a copy of the weight, on a map of which `_refusal_of_copies` is None."""
    (n, _, height, width), (kh, kw) = x.shape, weight.shape[2:]
    panels = copies.get('panels', weight, lambda plain: pack(plain.permute(0, 2, 3, 1).flatten(1)))
    bias = None if bias is None else bias.contiguous()
    y = linear(patches(x, kh, kw), panels, bias)
    return y.view(n, height // kh, width // kw, -1).permute(0, 3, 1, 2)


def _refusal_of_copies(x: Tensor, weight: Tensor, bias: Tensor | None) -> str | None:
    """Reason why no copy of the weight is multiplied with, or None."""
    if jit.refusal() is not None:
        return jit.refusal()
    if not can_address(x, weight, bias):
        return 'only plain float32 tensors are multiplied with a copy'
    if weight.is_inference():
        return 'a weight made in inference mode has no version by which a change could be told'
    if not channels_last(x) or x.stride(3) != x.shape[1]:
        return 'the map is not channels-last'
    return None


def _refusal(
    x: Tensor, weight: Tensor, bias: Tensor | None, copies: PackedWeights | None
) -> str | None:
    if torch.compiler.is_compiling():
        return 'torch.compile lays the convolution out itself'
    reason = dispatch.refusal_for_device(x, 'cpu', weight, bias)
    if reason is not None:
        return reason
    if not torch.is_grad_enabled() and copies is None:
        return "without gradients torch's convolution is as fast"
    if dispatch.needs_dispatcher(x) or type(weight) not in (Tensor, nn.Parameter):
        return 'autocast, a dispatch mode or a subclass has to see the layer'
    if x.dtype not in (torch.float32, torch.float64) or weight.dtype != x.dtype:
        return f'the input is {x.dtype} and the weight {weight.dtype}'
    if min(x.shape[2] // weight.shape[2], x.shape[3] // weight.shape[3]) == 0 or x.numel() == 0:
        return 'the map holds no patch'
    return None if torch.is_grad_enabled() else _refusal_of_copies(x, weight, bias)


class PatchConv2d(NotScriptable, nn.Conv2d):
    """``nn.Conv2d`` that is computed by `patch_conv2d` where its stride is its kernel size.

    The arguments are those of ``nn.Conv2d``, since libraries of adapters make layers of the same class.
    """

    def forward(self, x: Tensor) -> Tensor:
        plain = self.padding == (0, 0) and self.dilation == (1, 1) and self.groups == 1
        if self.stride != self.kernel_size or not plain:
            return super().forward(x)
        return patch_conv2d(x, self.weight, self.bias)


dispatch.declare('patch_conv2d', _arguments, _reference)
dispatch.register('patch_conv2d', dispatch.Backend('cpu', _run, _refusal))
