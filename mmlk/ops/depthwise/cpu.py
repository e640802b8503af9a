"""CPU backend: every pass of a depthwise convolution on the route that is fastest for its shape.

`plan` is the policy. It looks at shapes and the layout only, never at a clock, so a shape always
takes the same arithmetic. `docs/development/cpu.md` holds the measurements behind it.

Three rules apply before it. A kernel is clipped to the 2L - 1 taps that a map of length L can
reach, which is exact. Floating types of 16 bits are computed in float32 and rounded once: torch has
no vectorised depthwise convolution for them on most CPUs. Results are returned in the layout of the
input, whatever layout the route works in.

Where loops can be compiled (`mmlk.ops.jit`), they are the route of nearly every float32 shape; the
routes of torch serve float64, the largest kernels, machines without llvmlite, and contiguous maps in
inference for kernels up to 9 wide.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mmlk.ops import dispatch, jit, library
from mmlk.ops.depthwise import loops, schema
from mmlk.ops.depthwise import torch_routes as routes
from mmlk.ops.jit.address import can_address
from mmlk.ops.maps import channels_last, in_compute_dtype, layout
from mmlk.ops.memory import keep_freed_memory
from mmlk.ops.reference import depthwise_conv2d_reference

PLAIN, LAST, ANY, CHANNELS = 'contiguous', 'channels-last', 'any', 'channels side by side'

# name -> (layout it works in, computation)
FORWARD = {
    'compiled': (CHANNELS, loops.forward),
    'native': (PLAIN, routes.forward_native),
    'native channels-last': (LAST, routes.forward_native),
    'padded': (PLAIN, routes.forward_padded),
    'transposed': (ANY, routes.forward_transposed),
    'fourier': (PLAIN, routes.forward_fourier),
}
INPUT_GRADIENT = {
    'native': (PLAIN, routes.input_gradient_native),
    'native channels-last': (LAST, routes.input_gradient_native),
    'flipped': (PLAIN, routes.input_gradient_flipped),
    'padded': (PLAIN, routes.input_gradient_padded),
    'transposed': (ANY, routes.input_gradient_transposed),
    'fourier': (PLAIN, routes.input_gradient_fourier),
}
WEIGHT_GRADIENT = {
    'native': (PLAIN, routes.weight_gradient_native),
    'native channels-last': (LAST, routes.weight_gradient_native),
    'grouped': (PLAIN, routes.weight_gradient_grouped),
    'fourier': (PLAIN, routes.weight_gradient_fourier),
}


class Plan(NamedTuple):
    """Names of the routes of the three passes."""

    forward: str
    input_gradient: str
    weight_gradient: str


NATIVE = Plan('native', 'native', 'native')
NATIVE_LAST = Plan(*('native channels-last',) * 3)
COMPILED = Plan(*('compiled',) * 3)


@functools.lru_cache(maxsize=4096)
def plan(
    shape: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    last: bool,
    compiles: bool = False,
) -> Plan:
    """The routes for one shape.

    Args:
        shape: Rows and columns of the map.
        kernel: Rows and columns of the kernel, clipped to the map.
        stride: Step in rows and columns.
        last: Whether the map is given channels-last.
        compiles: Whether loops can be compiled for it.
    """
    kh, kw = kernel
    if compiles and not leaves_the_cache(shape, kernel):
        # With the fewest taps torch is as fast and its autograd node is cheaper; a contiguous map is
        # reordered twice, which is slower than torch unless there are more taps.
        few = kw <= 3 and kh * kw <= 11 and stride == (1, 1)
        if last and not few or kw > 3 and kh * kw >= 25 and stride == (1, 1):
            return COMPILED
    # The only contiguous weight gradients of torch that are both fast and right.
    safe = kw <= 3 and kh <= 31
    if stride != (1, 1):
        contiguous = Plan(
            'native' if kw <= 9 else 'native channels-last',
            'native',
            'native' if safe else 'native channels-last',
        )
        return NATIVE_LAST if last else contiguous
    if last and max(kh, kw) <= 11:
        # torch is slow here for the weight gradient only, and not where one row is summed.
        return (
            NATIVE_LAST if kw <= 3 or kh == 1 else NATIVE_LAST._replace(weight_gradient='grouped')
        )
    pixels, taps = shape[0] * shape[1], kh * kw
    if _prefers_spectra(shape, kernel):
        # The gradients share a spectrum; the forward pass alone needs more taps or pixels to gain.
        small = pixels <= 48**2 and taps <= 21**2
        return Plan('padded' if small else 'fourier', 'fourier', 'fourier')
    weight_gradient = 'fourier' if taps >= 17**2 and pixels >= 40**2 else 'grouped'
    if safe:
        return NATIVE
    if kw <= 9:
        return Plan('native', 'flipped', weight_gradient)
    if kh <= 9 and kw >= 21 and pixels <= 64**2:
        return Plan('transposed', 'transposed', weight_gradient)
    return Plan('padded', 'padded' if pixels <= 90**2 else 'native', weight_gradient)


def _prefers_spectra(shape: tuple[int, int], kernel: tuple[int, int]) -> bool:
    """Whether transforms, whose cost hardly depends on the kernel, beat the sum over its taps."""
    pixels, taps = shape[0] * shape[1], kernel[0] * kernel[1]
    if min(kernel) < 17 or pixels < 24**2:
        return False
    if pixels < 40**2:
        return taps >= 41**2
    # On large maps the spectra leave the cache and need larger kernels to pay.
    return taps >= 21**2 or pixels <= 90**2


def leaves_the_cache(shape: tuple[int, int], kernel: tuple[int, int]) -> bool:
    """Whether transforms beat compiled sums, or a row of planes the second cache."""
    return (
        kernel[0] * kernel[1] >= 49**2
        and min(shape) >= 48
        or kernel[0] * (shape[1] + kernel[1]) > 16_384
    )


def can_compile(x: Tensor) -> bool:
    """Whether there are compiled loops for a map of this type."""
    return x.dtype == torch.float32 and x.is_cpu and jit.refusal() is None


def laid_out(x: Tensor, form: str) -> Tensor:
    """``x`` with axes ordered as ``form`` says; a slice is left one, every route takes those."""
    if form == PLAIN:
        return x.contiguous() if channels_last(x) else x
    if form == CHANNELS and x.stride(1) == 1:
        return x
    return x if form == ANY else x.contiguous(memory_format=torch.channels_last)


def clipped_kernel(weight: Tensor, size: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """``weight`` clipped to the map, in ``dtype``, in plain strides.

    Channels-last strides of a weight, which `Tensor.to` leaves behind, would leak to the result.
    """
    kh, kw = weight.shape[2:]
    if kh >= 2 * size[0] or kw >= 2 * size[1]:
        cut_h, cut_w = max(0, kh // 2 - size[0] + 1), max(0, kw // 2 - size[1] + 1)
        weight = weight[:, :, cut_h : kh - cut_h, cut_w : kw - cut_w].contiguous()
    weight = weight.to(dtype)
    return weight.reshape(-1).view(weight.shape) if weight.stride(1) == 1 else weight


def unclipped(grad_weight: Tensor, kernel) -> Tensor:
    """Gradient of the kernel that was clipped: zero at the taps that reach nothing."""
    kh, kw = grad_weight.shape[2:]
    if (kh, kw) == tuple(kernel):
        return grad_weight.contiguous()
    cut_h, cut_w = (kernel[0] - kh) // 2, (kernel[1] - kw) // 2
    return F.pad(grad_weight, (cut_w, cut_w, cut_h, cut_h))


def plan_for(x: Tensor, kernel: Tensor, stride) -> Plan:
    """The routes for a map and its clipped kernel."""
    if x.numel() == 0:
        return NATIVE
    return plan(
        tuple(x.shape[2:]), tuple(kernel.shape[2:]), tuple(stride), channels_last(x), can_compile(x)
    )


def compute(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int]) -> Tensor:
    """`mmlk::depthwise_conv2d` on a CPU; 16-bit types are rounded once."""
    keep_freed_memory()
    out_layout, dtype = layout(x), x.dtype
    x = in_compute_dtype(x)
    kernel = clipped_kernel(weight, x.shape[2:], x.dtype)
    bias = None if bias is None else bias.to(x.dtype)
    form, route = FORWARD[plan_for(x, kernel, stride).forward]
    x = laid_out(x, form)
    step = (tuple(stride),) if max(stride) > 1 else ()
    y = route(x, kernel, bias, *step)
    return y.to(dtype).contiguous(memory_format=out_layout)


def gradients(
    grad: Tensor, x: Tensor, kernel: Tensor, stride: list[int], mask: list[bool], chosen: Plan
) -> list[Tensor | None]:
    """Wanted gradients of map, clipped kernel and bias, in whatever layout the routes leave them."""
    by_input, by_weight = chosen.input_gradient, chosen.weight_gradient
    if chosen == COMPILED:
        return compiled_gradients(laid_out(grad, CHANNELS), x, kernel, stride, mask)
    if by_input == by_weight and by_input.startswith('native') and (mask[0] or mask[1]):
        form = INPUT_GRADIENT[by_input][0]
        return list(routes.gradients_native(grad, laid_out(x, form), kernel, stride, mask))
    results = [None, None, grad.sum((0, 2, 3)) if mask[2] else None]
    if mask[0] and mask[1] and by_input == by_weight == 'fourier':
        results[:2] = routes.gradients_fourier(grad.contiguous(), x.contiguous(), kernel)
        return results
    step = (stride,) if max(stride) > 1 else ()
    if mask[1]:
        form, route = WEIGHT_GRADIENT[by_weight]
        # Kept for the other gradient unless that one works channels-last on what was given so.
        plain_x, plain_grad = laid_out(x, form), laid_out(grad, form)
        results[1] = route(plain_grad, plain_x, kernel, *step)
        if INPUT_GRADIENT[by_input][0] == form:
            x, grad = plain_x, plain_grad
    if mask[0]:
        form, route = INPUT_GRADIENT[by_input]
        results[0] = route(laid_out(grad, form), laid_out(x, form), kernel, *step)
    return results


def compiled_gradients(
    grad: Tensor, x: Tensor, kernel: Tensor, stride, mask, out: Tensor | None = None
) -> list[Tensor | None]:
    """Wanted gradients of map, kernel and bias by the compiled loops; ``out`` takes the map's."""
    results = [None, None, None]
    if mask[0]:
        results[0] = loops.input_gradient(grad, kernel, x.shape, tuple(stride), out=out)
    if mask[1] or mask[2]:
        results[1:] = loops.weight_gradient(
            grad, laid_out(x, CHANNELS), tuple(kernel.shape[2:]), tuple(stride)
        )
    return results


def compute_backward(
    grad: Tensor, x: Tensor, weight: Tensor, stride: list[int], mask: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """`mmlk::depthwise_conv2d_backward` on a CPU; 16-bit types are rounded once."""
    keep_freed_memory()
    out_layout, dtype = layout(x), x.dtype
    x, grad = in_compute_dtype(x), in_compute_dtype(grad)
    kernel = clipped_kernel(weight, x.shape[2:], x.dtype)
    grad_x, grad_weight, grad_bias = gradients(
        grad, x, kernel, stride, mask, plan_for(x, kernel, stride)
    )
    return (
        grad_x.to(dtype).contiguous(memory_format=out_layout)
        if mask[0]
        else x.new_empty(0, dtype=dtype),
        unclipped(grad_weight, weight.shape[2:]).to(weight.dtype)
        if mask[1]
        else weight.new_empty(0),
        grad_bias.to(weight.dtype) if mask[2] else weight.new_empty(0),
    )


def _refusal(x: Tensor, weight: Tensor, bias: Tensor | None, _stride) -> str | None:
    return dispatch.refusal_for_device(x, 'cpu', weight, bias)


def _describe(x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int]) -> str:
    kernel = clipped_kernel(weight, x.shape[2:], weight.dtype)
    chosen = plan_for(x, kernel, stride)
    words = [f'{name.replace("_", " ")} {route}' for name, route in chosen._asdict().items()]
    reason = jit.refusal()
    return ', '.join([*words, *([] if reason is None else [f'no compiled loops: {reason}'])])


def can_use_torch(
    x: Tensor, weight: Tensor, stride: tuple[int, int], forward_alone: bool = False
) -> bool:
    """Whether torch's own convolution is the best route for all passes of ``x`` as it is given.

    Then it is called directly, which spares small maps the cost of a registered operator. A forward
    pass alone of a contiguous map does not pay the compiled loops back that the map is reordered.
    """
    kh, kw = weight.shape[2:]
    if x.dtype != torch.float32 or torch.is_autocast_enabled('cpu'):
        return False
    if kh >= 2 * x.shape[2] or kw >= 2 * x.shape[3]:
        return False
    if channels_last(x):
        return kw <= 3 and kh <= 31 or kh == 1 and kw <= 11 or stride != (1, 1)
    vectorised = kw <= 9 if forward_alone else kw <= 3 and kh <= 31
    return vectorised and weight.stride(1) != 1


def _forward_alone(*tensors: Tensor | None) -> bool:
    """Whether nobody will ask for gradients."""
    return not torch.is_grad_enabled() or not any(
        each is not None and each.requires_grad for each in tensors
    )


def _refusal_to_gain(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int]
) -> str | None:
    """Reason why torch's own convolution is as fast in every pass, or None."""
    reason = "torch's own convolution is as fast for this map and kernel"
    if can_use_torch(x, weight, stride):
        return reason
    kernel = clipped_kernel(weight, x.shape[2:], weight.dtype)
    as_it_is = kernel.shape == weight.shape and in_compute_dtype(x) is x
    native = NATIVE_LAST if channels_last(x) else NATIVE
    if as_it_is and not torch.is_autocast_enabled('cpu') and plan_for(x, kernel, stride) == native:
        return reason
    return None


def _can_loop(x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int]) -> bool:
    """Whether the loops are the route, without conversion or clipping."""
    kh, kw = weight.shape[2:]
    h, w = x.shape[2:]
    return (
        can_address(x, weight, bias)
        and channels_last(x)
        and kh < 2 * h
        and kw < 2 * w
        and x.numel() > 0
        and plan((h, w), (kh, kw), stride, True, jit.refusal() is None) is COMPILED
    )


def _keep(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int]) -> None:
    ctx.save_for_backward(x, weight)
    ctx.stride = stride


def _loop_forward(ctx, x, weight, bias, stride) -> Tensor:
    _keep(ctx, x, weight, bias, stride)
    return loops.forward(x, weight, bias, stride)


def _loop_backward(ctx, grad: Tensor) -> Sequence[Tensor | None]:
    if dispatch.needs_dispatcher(grad):
        return _backward(ctx, grad)
    x, weight = ctx.saved_tensors
    return compiled_gradients(
        laid_out(grad, CHANNELS), x, weight, ctx.stride, ctx.needs_input_grad[:3]
    )


def _forward(ctx, x, weight, bias, stride) -> Tensor:
    _keep(ctx, x, weight, bias, stride)
    return compute(x, weight, bias, stride)


def _backward(ctx, grad: Tensor) -> Sequence[Tensor | None]:
    x, weight = ctx.saved_tensors
    return torch.ops.mmlk.depthwise_conv2d_backward(
        grad, x, weight, list(ctx.stride), ctx.needs_input_grad[:3]
    )


_apply = library.node('depthwise_conv2d', _forward, _backward)
_apply_loops = library.node('depthwise_conv2d', _loop_forward, _loop_backward)


def _run(x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int]) -> Tensor:
    seen = dispatch.needs_dispatcher(x)
    if not seen and _can_loop(x, weight, bias, stride):
        keep_freed_memory()
        if torch.is_grad_enabled():
            return _apply_loops(x, weight, bias, stride)
        return loops.forward(x, weight, bias, stride)
    if can_use_torch(x, weight, stride, _forward_alone(x, weight, bias)):
        return depthwise_conv2d_reference(x, weight, bias, stride)
    if seen:
        return schema.depthwise_conv2d(x, weight, bias, stride)
    return (_apply if torch.is_grad_enabled() else compute)(x, weight, bias, stride)


library.implement('depthwise_conv2d', 'CPU', compute)
library.implement('depthwise_conv2d_backward', 'CPU', compute_backward)
dispatch.register(
    'depthwise_conv2d', dispatch.Backend('cpu', _run, _refusal, _describe, _refusal_to_gain)
)
