"""One small call of every public operator, for tests of what holds for all of them."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from mmlk import ops
from mmlk.ops.norm.batch_norm import BatchNormState
from tests.cases import TOLERANCE, assert_close


class Call(NamedTuple):
    """How an operator is called.

    Args:
        shapes: Of its tensors, in the order in which ``run`` takes them. Maps are channels-last.
        run: ``run(operator, *tensors)``.
    """

    shapes: tuple[tuple[int, ...], ...]
    run: Callable[..., Tensor | tuple[Tensor, ...]]

    def tensors(self, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """Random operands."""
        torch.manual_seed(0)
        return [_laid_out(0.5 * torch.randn(shape, dtype=dtype)) for shape in self.shapes]


def _laid_out(x: Tensor) -> Tensor:
    """A map of more than one pixel channels-last."""
    is_map = x.dim() == 4 and x.shape[0] == 2 and x.shape[3] > 7
    return x.contiguous(memory_format=torch.channels_last) if is_map else x


def norm_of(weight: Tensor, bias: Tensor) -> BatchNormState:
    """A batch norm that has seen nothing yet."""
    mean, var = torch.zeros_like(weight.detach()), torch.ones_like(weight.detach())
    return BatchNormState(weight, bias, mean, var, None, 0.1, 1e-5)


def calls(n: int = 2, c: int = 24, h: int = 12, w: int = 10) -> dict[str, Call]:
    """The calls by name of the operator, on maps (n, c, h, w)."""
    x, square, wide, tall = (n, c, h, w), (c, 1, 7, 7), (c, 1, 5, 13), (c, 1, 13, 5)
    g = c // 8
    bands = ((g, 1, 3, 3), (g,), (g, 1, 1, 11), (g,), (g, 1, 11, 1), (g,))
    mlp = ((2 * c, c), (2 * c,), (c, 2 * c), (c,), (c,))
    return {
        'depthwise_conv2d': Call((x, square, (c,)), lambda op, *a: op(*a)),
        'expanding_depthwise_conv2d': Call(
            (x, (2 * c, 1, 7, 7), (2 * c,)), lambda op, *a: op(*a, 2)
        ),
        'inception_dwconv2d': Call((x, *bands), lambda op, *a: op(*a)),
        'large_kernel_branches': Call(
            (x, wide, tall, square), lambda op, x, *weights: op(x, weights)
        ),
        'large_kernel_sum': Call(
            (x, wide, tall, square, (c,)), lambda op, x, *a: op(x, a[:3], a[3])
        ),
        'large_kernel_normed': Call(
            (x, wide, tall, (c,), (c,), (c,), (c,)),
            lambda op, x, *a: op(x, a[:2], [norm_of(*a[2:4]), norm_of(*a[4:])]),
        ),
        'layer_norm': Call(((n * h * w, c), (c,), (c,)), lambda op, *a: op(*a)),
        'contiguous_map': Call((x,), lambda op, x: op(x, torch.contiguous_format)),
        'pointwise_conv2d': Call((x, (2 * c, c, 1, 1), (2 * c,)), lambda op, *a: op(*a)),
        'patch_conv2d': Call((x, (2 * c, c, 2, 2), (2 * c,)), lambda op, *a: op(*a)),
        'channel_mlp': Call(((n * h * w, c), *mlp), lambda op, *a: op(*a)),
        'folded_linear': Call(
            ((n * h * w, c), (2 * c, c), (2 * c,), (n * h * w, 2 * c)),
            lambda op, *a: op(*a, gelu=True),
        ),
        'conv_norm_mlp': Call(
            (x, x, (c,), (c,), (2 * c, c, 1, 1), (2 * c,), (2 * c,), (c, 2 * c, 1, 1), (c,), (c,)),
            lambda op, x, y, a, b, v, p, q, w, r, s: op(
                x, y, norm_of(a, b), v, norm_of(p, q), w, norm_of(r, s)
            ),
        ),
        'depthwise_sum': Call(
            (x, square, (c,), (c,), x),
            lambda op, x, w, a, b, y: op(x, w, None, norm_of(a, b), onto=y),
        ),
        'linear_attention2d': Call(
            (x, (2 * c, c, 1, 1), (2 * c,), (2 * c,)),
            lambda op, x, w, a, b: op(x, w, None, norm_of(a, b), heads=3),
        ),
        'recconv2d': Call(
            (x, *((c, 1, 5, 5),) * 4), lambda op, x, down, *weights: op(x, down, weights)
        ),
        'dcls_kernel1d': Call(((c, 1, 5), (1, c, 1, 5)), lambda op, *a: op(*a, kernel_size=9)),
        'dcls_kernel2d': Call(
            ((c, 1, 5), (2, c, 1, 5), (2, c, 1, 5)),
            lambda op, *a: op(*a, kernel_size=9, version='gauss'),
        ),
        'dcls_kernel3d': Call(
            ((c, 1, 5), (3, c, 1, 5)), lambda op, *a: op(*a, kernel_size=(3, 5, 7))
        ),
    }


CALLS = calls()


def compute(name: str, tensors: list[Tensor], reference: bool = False, call: Call | None = None):
    """The operator's result, a tuple of tensors."""
    result = (call or CALLS[name]).run(
        getattr(ops, f'{name}_reference' if reference else name), *tensors
    )
    return result if isinstance(result, tuple) else (result,)


def outcome(
    name: str,
    tensors: list[Tensor],
    gradients: bool,
    reference: bool = False,
    call: Call | None = None,
):
    """The result, and with ``gradients`` those of all operands for a fixed cotangent."""
    leaves = [each.detach().requires_grad_(gradients) for each in tensors]
    with torch.set_grad_enabled(gradients):
        results = compute(name, leaves, reference, call)
    if not gradients:
        return list(results)
    generator = torch.Generator().manual_seed(1)
    cotangents = [
        torch.randn(each.shape, generator=generator, dtype=torch.float64).to(each.dtype)
        for each in results
    ]
    return [*results, *torch.autograd.grad(results, leaves, cotangents)]


def check(name: str, tensors: list[Tensor], gradients: bool) -> None:
    """Compare with the reference in float64 of the same values."""
    got = outcome(name, tensors, gradients)
    doubles = [each.detach().double() for each in tensors]
    want = outcome(name, doubles, gradients, reference=True)
    output, parameter = TOLERANCE[torch.float32]
    count = len(got) - len(tensors) if gradients else len(got)
    for index, (mine, theirs) in enumerate(zip(got, want, strict=True)):
        limit = output
        if index >= count:
            # The bias of a norm in front of another has no gradient but the rounding of its sum.
            largest = theirs.abs().max().item() if theirs.numel() else 0.0
            limit = parameter * max(1.0, 3.0 / max(largest, 1e-6))
        assert_close(f'{name}, result {index}', mine, theirs, limit)
