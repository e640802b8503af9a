"""CPU backend: every pass of a depthwise convolution on the route that is fastest for its shape.

`plan` is the policy. It looks at shapes and the layout only, never at a clock, so a shape always
takes the same arithmetic. `docs/benchmarks.md` holds the measurements behind it.

Three rules apply before it. A kernel is clipped to the 2L - 1 taps that a map of length L can
reach, which is exact. Floating types of 16 bits are computed in float32 and rounded once: torch has
no vectorised depthwise convolution for them on most CPUs. Results are returned in the layout of the
input, whatever layout the route works in.

Where loops can be compiled (`mmlk.ops.jit`), they are the route of nearly every float32 shape; the
routes of torch serve float64, the largest kernels and machines without llvmlite.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mmlk.ops import cpu_routes as routes
from mmlk.ops import dispatch, jit, operators
from mmlk.ops.allocation import keep_freed_memory
from mmlk.ops.jit import depthwise as compiled
from mmlk.ops.operators import channels_last, layout
from mmlk.ops.reference import depthwise_conv2d_reference, pair

PLAIN, LAST, ANY, CHANNELS = 'contiguous', 'channels-last', 'any', 'channels side by side'

# name -> (layout it works in, computation)
FORWARD = {
    'compiled': (CHANNELS, compiled.forward),
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


_NATIVE = Plan('native', 'native', 'native')
_NATIVE_LAST = Plan(*('native channels-last',) * 3)
_COMPILED = Plan(*('compiled',) * 3)


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
    if compiles and not _leaves_the_cache(shape, kernel):
        # With the fewest taps torch is as fast and its autograd node is cheaper; a contiguous map is
        # reordered twice, which more taps must pay for.
        few = kw <= 3 and kh * kw <= 11 and stride == (1, 1)
        if last and not few or kw > 3 and kh * kw >= 25 and stride == (1, 1):
            return _COMPILED
    # The only contiguous weight gradients of torch that are both fast and right.
    safe = kw <= 3 and kh <= 31
    if stride != (1, 1):
        contiguous = Plan(
            'native' if kw <= 9 else 'native channels-last',
            'native',
            'native' if safe else 'native channels-last',
        )
        return _NATIVE_LAST if last else contiguous
    if last and max(kh, kw) <= 11:
        # torch is slow here for the weight gradient only, and not where one row is summed.
        return (
            _NATIVE_LAST if kw <= 3 or kh == 1 else _NATIVE_LAST._replace(weight_gradient='grouped')
        )
    pixels, taps = shape[0] * shape[1], kh * kw
    if _prefers_spectra(shape, kernel):
        # The gradients share a spectrum; the forward pass alone needs more taps or pixels to gain.
        small = pixels <= 48**2 and taps <= 21**2
        return Plan('padded' if small else 'fourier', 'fourier', 'fourier')
    weight_gradient = 'fourier' if taps >= 17**2 and pixels >= 40**2 else 'grouped'
    if safe:
        return _NATIVE
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


def _leaves_the_cache(shape: tuple[int, int], kernel: tuple[int, int]) -> bool:
    """Whether transforms beat compiled sums, or a row of planes exceeds a thread's stack."""
    return (
        kernel[0] * kernel[1] >= 49**2
        and min(shape) >= 48
        or kernel[0] * (shape[1] + kernel[1]) > 16_384
    )


def _compiles(x: Tensor) -> bool:
    return x.dtype == torch.float32 and x.is_cpu and jit.unavailable() is None


def _addressable(*tensors: Tensor | None) -> bool:
    """Whether compiled loops may read the memory of all tensors as float32."""
    return all(
        each is None
        or type(each) in (Tensor, torch.nn.Parameter)
        and each.is_cpu
        and each.dtype == torch.float32
        for each in tensors
    )


def _working(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _laid_out(x: Tensor, form: str) -> Tensor:
    """``x`` with axes ordered as ``form`` says; a slice is left one, every route takes those."""
    if form == PLAIN:
        return x.contiguous() if channels_last(x) else x
    if form == CHANNELS and x.stride(1) == 1:
        return x
    return x if form == ANY else x.contiguous(memory_format=torch.channels_last)


def _kernel(weight: Tensor, size: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """``weight`` clipped to the map, in ``dtype``, in plain strides.

    Channels-last strides of a weight, which `Tensor.to` leaves behind, would leak to the result.
    """
    kh, kw = weight.shape[2:]
    if kh >= 2 * size[0] or kw >= 2 * size[1]:
        cut_h, cut_w = max(0, kh // 2 - size[0] + 1), max(0, kw // 2 - size[1] + 1)
        weight = weight[:, :, cut_h : kh - cut_h, cut_w : kw - cut_w].contiguous()
    weight = weight.to(dtype)
    return weight.reshape(-1).view(weight.shape) if weight.stride(1) == 1 else weight


def _unclip(grad_weight: Tensor, kernel) -> Tensor:
    kh, kw = grad_weight.shape[2:]
    if (kh, kw) == tuple(kernel):
        return grad_weight.contiguous()
    cut_h, cut_w = (kernel[0] - kh) // 2, (kernel[1] - kw) // 2
    return F.pad(grad_weight, (cut_w, cut_w, cut_h, cut_h))


def _plan_for(x: Tensor, kernel: Tensor, stride) -> Plan:
    if x.numel() == 0:
        return _NATIVE
    return plan(
        tuple(x.shape[2:]), tuple(kernel.shape[2:]), tuple(stride), channels_last(x), _compiles(x)
    )


def _depthwise(x: Tensor, weight: Tensor, bias: Tensor | None, stride: list[int]) -> Tensor:
    keep_freed_memory()
    out_layout, dtype = layout(x), x.dtype
    x = _working(x)
    kernel = _kernel(weight, x.shape[2:], x.dtype)
    bias = None if bias is None else bias.to(x.dtype)
    form, compute = FORWARD[_plan_for(x, kernel, stride).forward]
    x = _laid_out(x, form)
    y = compute(x, kernel, bias, tuple(stride)) if max(stride) > 1 else compute(x, kernel, bias)
    return y.to(dtype).contiguous(memory_format=out_layout)


def _gradients(
    grad: Tensor, x: Tensor, kernel: Tensor, stride: list[int], mask: list[bool], chosen: Plan
) -> list[Tensor | None]:
    """Wanted gradients of map, clipped kernel and bias, in whatever layout the routes leave them."""
    by_input, by_weight = chosen.input_gradient, chosen.weight_gradient
    if chosen == _COMPILED:
        return _compiled_gradients(_laid_out(grad, CHANNELS), x, kernel, stride, mask)
    if by_input == by_weight and by_input.startswith('native') and (mask[0] or mask[1]):
        form = INPUT_GRADIENT[by_input][0]
        return list(routes.gradients_native(grad, _laid_out(x, form), kernel, stride, mask))
    results = [None, None, grad.sum((0, 2, 3)) if mask[2] else None]
    if mask[0] and mask[1] and by_input == by_weight == 'fourier':
        results[:2] = routes.gradients_fourier(grad.contiguous(), x.contiguous(), kernel)
        return results
    step = (stride,) if max(stride) > 1 else ()
    if mask[1]:
        form, compute = WEIGHT_GRADIENT[by_weight]
        # Kept for the other gradient unless that one works channels-last on what was given so.
        plain_x, plain_grad = _laid_out(x, form), _laid_out(grad, form)
        results[1] = compute(plain_grad, plain_x, kernel, *step)
        if INPUT_GRADIENT[by_input][0] == form:
            x, grad = plain_x, plain_grad
    if mask[0]:
        form, compute = INPUT_GRADIENT[by_input]
        results[0] = compute(_laid_out(grad, form), _laid_out(x, form), kernel, *step)
    return results


def _compiled_gradients(
    grad: Tensor, x: Tensor, kernel: Tensor, stride, mask, out: Tensor | None = None
) -> list[Tensor | None]:
    results = [None, None, None]
    if mask[0]:
        results[0] = compiled.input_gradient(grad, kernel, x.shape, tuple(stride), out=out)
    if mask[1] or mask[2]:
        results[1:] = compiled.weight_gradient(
            grad, _laid_out(x, CHANNELS), tuple(kernel.shape[2:]), tuple(stride)
        )
    return results


def _depthwise_backward(
    grad: Tensor, x: Tensor, weight: Tensor, stride: list[int], mask: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    keep_freed_memory()
    out_layout, dtype = layout(x), x.dtype
    x, grad = _working(x), _working(grad)
    kernel = _kernel(weight, x.shape[2:], x.dtype)
    grad_x, grad_weight, grad_bias = _gradients(
        grad, x, kernel, stride, mask, _plan_for(x, kernel, stride)
    )
    return (
        grad_x.to(dtype).contiguous(memory_format=out_layout)
        if mask[0]
        else x.new_empty(0, dtype=dtype),
        _unclip(grad_weight, weight.shape[2:]).to(weight.dtype) if mask[1] else weight.new_empty(0),
        grad_bias.to(weight.dtype) if mask[2] else weight.new_empty(0),
    )


def _branch_plan(x: Tensor, kernel: Tensor) -> Plan:
    """Routes of a branch of the Inception operator.

    A slice of channels is copied in any case, so a short wide band, which torch computes well
    channels-last only, is copied to that layout.
    """
    kh, kw = kernel.shape[2:]
    if _compiles(x) and channels_last(x):
        return _COMPILED
    if max(kh, kw) <= 15:
        return _NATIVE_LAST if kw > 3 or channels_last(x) else _NATIVE
    return _plan_for(x, kernel, (1, 1))


def _inception(
    x: Tensor,
    weight_hw: Tensor,
    bias_hw: Tensor | None,
    weight_w: Tensor,
    bias_w: Tensor | None,
    weight_h: Tensor,
    bias_h: Tensor | None,
) -> Tensor:
    keep_freed_memory()
    y = x.clone(memory_format=layout(x))
    g = weight_hw.shape[0]
    start = x.shape[1] - 3 * g
    for weight, bias in ((weight_hw, bias_hw), (weight_w, bias_w), (weight_h, bias_h)):
        part = _working(x.narrow(1, start, g))
        kernel = _kernel(weight, x.shape[2:], part.dtype)
        chosen = _branch_plan(part, kernel)
        form, compute = FORWARD[chosen.forward]
        bias = None if bias is None else bias.to(part.dtype)
        target = y.narrow(1, start, g)
        if chosen == _COMPILED and y.dtype == part.dtype:
            compute(part, kernel, bias, out=target)
        else:
            target.copy_(compute(_laid_out(part, form), kernel, bias))
        start += g
    return y


def _inception_backward(
    grad: Tensor, x: Tensor, weight_hw: Tensor, weight_w: Tensor, weight_h: Tensor, mask: list[bool]
) -> list[Tensor]:
    keep_freed_memory()
    g = weight_hw.shape[0]
    start = x.shape[1] - 3 * g
    results = [grad.clone(memory_format=layout(x)) if mask[0] else x.new_empty(0)]
    for index, weight in enumerate((weight_hw, weight_w, weight_h)):
        wanted = [mask[0], mask[2 * index + 1], mask[2 * index + 2]]
        part = _working(x.narrow(1, start, g))
        kernel = _kernel(weight, x.shape[2:], part.dtype)
        incoming, chosen = _working(grad.narrow(1, start, g)), _branch_plan(part, kernel)
        target = results[0].narrow(1, start, g) if mask[0] else None
        if chosen == _COMPILED and grad.dtype == part.dtype:
            grad_x, grad_weight, grad_bias = _compiled_gradients(
                _laid_out(incoming, CHANNELS), part, kernel, [1, 1], wanted, target
            )
        else:
            grad_x, grad_weight, grad_bias = _gradients(
                incoming, part, kernel, [1, 1], wanted, chosen
            )
            if mask[0]:
                target.copy_(grad_x)
        results.append(
            _unclip(grad_weight, weight.shape[2:]).to(weight.dtype)
            if wanted[1]
            else weight.new_empty(0)
        )
        results.append(grad_bias.to(weight.dtype) if wanted[2] else weight.new_empty(0))
        start += g
    return results


def _refuses(x: Tensor, *_args) -> str | None:
    return dispatch.refuses_device(x, 'cpu')


def _describe(x: Tensor, weight: Tensor, bias: Tensor | None = None, stride=(1, 1)) -> str:
    kernel = _kernel(weight, x.shape[2:], weight.dtype)
    chosen = _plan_for(x, kernel, pair(stride))
    words = [f'{name.replace("_", " ")} {route}' for name, route in chosen._asdict().items()]
    reason = jit.unavailable()
    return ', '.join([*words, *([] if reason is None else [f'no compiled loops: {reason}'])])


def _is_plain_torch(x: Tensor, weight: Tensor, stride: tuple[int, int]) -> bool:
    """Whether torch's own convolution is the best route for all passes of ``x`` as it is given.

    Then it is called directly, which spares small maps the cost of a registered operator.
    """
    kh, kw = weight.shape[2:]
    if x.dtype != torch.float32 or torch.is_autocast_enabled('cpu'):
        return False
    if kh >= 2 * x.shape[2] or kw >= 2 * x.shape[3]:
        return False
    if channels_last(x):
        return kw <= 3 and kh <= 31 or kh == 1 and kw <= 11 or tuple(stride) != (1, 1)
    return kw <= 3 and kh <= 31 and weight.stride(1) != 1


class _Depthwise(torch.autograd.Function):
    """The kernels of the registered operator for calls that nothing watches."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, stride) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return _depthwise(x, weight, bias, stride)

    @staticmethod
    def backward(ctx, grad: Tensor):
        wanted = ctx.needs_input_grad[:3]
        # With gradients enabled a second derivative is wanted, which the registered operator refuses.
        compute = _depthwise_backward
        if torch.is_grad_enabled() or dispatch.watched(grad):
            compute = torch.ops.mmlk.depthwise_conv2d_backward
        gradients = compute(grad, *ctx.saved_tensors, list(ctx.stride), wanted)
        return *(each if needed else None for each, needed in zip(gradients, wanted)), None


class _Inception(torch.autograd.Function):
    """The same for the Inception operator."""

    @staticmethod
    def forward(
        ctx,
        x: Tensor,
        weight_hw: Tensor,
        bias_hw: Tensor | None,
        weight_w: Tensor,
        bias_w: Tensor | None,
        weight_h: Tensor,
        bias_h: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(x, weight_hw, weight_w, weight_h)
        return _inception(x, weight_hw, bias_hw, weight_w, bias_w, weight_h, bias_h)

    @staticmethod
    @dispatch.first_derivative_only('inception_dwconv2d')
    def backward(ctx, grad: Tensor):
        wanted = ctx.needs_input_grad
        gradients = _inception_backward(grad, *ctx.saved_tensors, wanted)
        return tuple(each if needed else None for each, needed in zip(gradients, wanted))


class _Compiled(torch.autograd.Function):
    """The compiled loops alone, for calls that need nothing else (`_takes_loops_as_it_is`)."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, stride) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        return compiled.forward(x, weight, bias, stride)

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled() or dispatch.watched(grad):
            gradients = torch.ops.mmlk.depthwise_conv2d_backward(
                grad, x, weight, list(ctx.stride), wanted
            )
        else:
            gradients = _compiled_gradients(
                _laid_out(grad, CHANNELS), x, weight, ctx.stride, wanted
            )
        return *(each if needed else None for each, needed in zip(gradients, wanted)), None


def _takes_loops_as_it_is(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, int]
) -> bool:
    """Whether the loops are the route, without conversion or clipping."""
    kh, kw = weight.shape[2:]
    h, w = x.shape[2:]
    return (
        _addressable(x, weight, bias)
        and channels_last(x)
        and kh < 2 * h
        and kw < 2 * w
        and x.numel() > 0
        and plan((h, w), (kh, kw), stride, True, jit.unavailable() is None) is _COMPILED
    )


def _run_depthwise(x: Tensor, weight: Tensor, bias: Tensor | None, stride) -> Tensor:
    watched = dispatch.watched(x)
    if not watched and _takes_loops_as_it_is(x, weight, bias, stride):
        keep_freed_memory()
        return (_Compiled.apply if torch.is_grad_enabled() else compiled.forward)(
            x, weight, bias, stride
        )
    if _is_plain_torch(x, weight, stride):
        return depthwise_conv2d_reference(x, weight, bias, stride)
    if watched:
        return operators.depthwise_conv2d(x, weight, bias, stride)
    if torch.is_grad_enabled():
        return _Depthwise.apply(x, weight, bias, stride)
    return _depthwise(x, weight, bias, stride)


def _run_inception(
    x: Tensor,
    weight_hw: Tensor,
    bias_hw: Tensor | None,
    weight_w: Tensor,
    bias_w: Tensor | None,
    weight_h: Tensor,
    bias_h: Tensor | None,
) -> Tensor:
    """Plain torch for the published kernels, with the wide band always channels-last.

    Calling it directly spares small maps the cost of a registered operator.
    """
    g, last = weight_hw.shape[0], channels_last(x)
    parameters = weight_hw, bias_hw, weight_w, bias_w, weight_h, bias_h
    if last and not dispatch.watched(x) and _compiles(x) and _addressable(*parameters):
        return (
            _Inception.apply(x, *parameters)
            if torch.is_grad_enabled()
            else _inception(x, *parameters)
        )
    identity, square, wide, tall = torch.split(x, (x.shape[1] - 3 * g, g, g, g), dim=1)
    band = weight_w.shape[3]
    if not (
        _is_plain_torch(square, weight_hw, (1, 1))
        and _is_plain_torch(tall, weight_h, (1, 1))
        and band <= 15
        and band < 2 * x.shape[3]
    ):
        return operators.inception_dwconv2d(
            x, weight_hw, bias_hw, weight_w, bias_w, weight_h, bias_h
        )
    if not last:
        wide = wide.contiguous(memory_format=torch.channels_last)
    wide = depthwise_conv2d_reference(wide, weight_w, bias_w)
    return torch.cat(
        (
            identity,
            depthwise_conv2d_reference(square, weight_hw, bias_hw),
            wide if last else wide.contiguous(),
            depthwise_conv2d_reference(tall, weight_h, bias_h),
        ),
        dim=1,
    )


dispatch.implement('depthwise_conv2d', 'CPU', _depthwise)
dispatch.implement('depthwise_conv2d_backward', 'CPU', _depthwise_backward)
dispatch.implement('inception_dwconv2d', 'CPU', _inception)
dispatch.implement('inception_dwconv2d_backward', 'CPU', _inception_backward)
dispatch.register('depthwise_conv2d', dispatch.Backend('cpu', _run_depthwise, _refuses, _describe))
dispatch.register('inception_dwconv2d', dispatch.Backend('cpu', _run_inception, _refuses))
