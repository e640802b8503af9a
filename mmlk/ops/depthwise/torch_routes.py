"""Ways to compute a depthwise convolution and its gradients on a CPU with torch's own primitives.

All are exact rearrangements of the same sum at stride 1 and zero padding ``k // 2``;
`mmlk.ops.depthwise.cpu` says which one is taken where. Maps are (N, C, H, W), weights (C, 1, kh, kw),
both float32 or float64. oneDNN reaches a third to a half of the processor's arithmetic on its vectorised
convolutions and one or two percent on what it computes as one matrix product per group; every
route below ends in a vectorised convolution or in a Fourier transform.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

convolution_backward = torch.ops.aten.convolution_backward.default


def _padding(weight: Tensor) -> tuple[int, int]:
    return weight.shape[2] // 2, weight.shape[3] // 2


# oneDNN's contiguous kernels take left paddings up to the width of their register tile.
_TILE = 4


def _outer_padding(kw: int) -> int:
    """Columns to pad beforehand on either side, so that oneDNN takes the rest and skips its taps."""
    return max(kw // 2 - _TILE, 0)


def _add_bias(y: Tensor, bias: Tensor | None) -> Tensor:
    return y if bias is None else y.add_(bias.view(-1, 1, 1))


# Forward ------------------------------------------------------------------------------------------


def forward_native(x: Tensor, weight: Tensor, bias: Tensor | None, stride=(1, 1)) -> Tensor:
    """torch's convolution as it is. In NCHW it is vectorised for widths up to 9 only."""
    return torch.conv2d(x, weight, bias, stride, _padding(weight), (1, 1), x.shape[1])


def forward_padded(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Outer columns padded beforehand, which lifts the limit on the width."""
    kh, kw = weight.shape[2:]
    outer = _outer_padding(kw)
    padded = F.pad(x, (outer, outer)) if outer else x
    return torch.conv2d(padded, weight, bias, 1, (kh // 2, kw // 2 - outer), 1, x.shape[1])


def forward_transposed(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Rows and columns exchanged: a wide kernel becomes a tall one."""
    y = forward_native(_transpose(x), _transpose(weight), bias)
    return y.transpose(2, 3)


def forward_fourier(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Product of spectra; what wraps around falls outside the window that is kept."""
    return _add_bias(input_gradient_fourier(x, x, weight.flip(2, 3)), bias)


# Input gradient -----------------------------------------------------------------------------------


def input_gradient_native(grad: Tensor, x: Tensor, weight: Tensor, stride=(1, 1)) -> Tensor:
    """torch's gradient as it is: vectorised for every kernel, and right for every kernel."""
    return convolution_backward(
        grad,
        x,
        weight,
        None,
        stride,
        _padding(weight),
        (1, 1),
        False,
        (0, 0),
        x.shape[1],
        (True, False, False),
    )[0]


def input_gradient_flipped(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """The forward convolution of the gradient with the kernel turned by half a circle."""
    return forward_native(grad, weight.flip(2, 3), None)


def input_gradient_padded(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """As `forward_padded`, with the kernel turned by half a circle."""
    return forward_padded(grad, weight.flip(2, 3), None)


def input_gradient_transposed(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """As `forward_transposed`, with the kernel turned by half a circle."""
    return forward_transposed(grad, weight.flip(2, 3), None)


def input_gradient_fourier(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Product of spectra: the gradient is a convolution proper, with the kernel not turned."""
    size = _transform_size(x.shape[2:], weight.shape[2:])
    spectrum = torch.fft.rfft2(grad, size).mul_(_kernel_spectrum(weight, size))
    return _inverse(spectrum, size, _same_window(x, weight))


# Weight gradient ----------------------------------------------------------------------------------


def weight_gradient_native(grad: Tensor, x: Tensor, weight: Tensor, stride=(1, 1)) -> Tensor:
    """torch's gradient as it is.

    In NCHW it is vectorised for widths up to 3 only, and there, on AVX2 machines, wrong by a tenth
    and more for heights of 35 and above on many map heights. `mmlk.ops.depthwise.cpu` never
    sends those here.
    """
    return convolution_backward(
        grad,
        x,
        weight,
        None,
        stride,
        _padding(weight),
        (1, 1),
        False,
        (0, 0),
        x.shape[1],
        (False, True, False),
    )[1]


def gradients_native(grad: Tensor, x: Tensor, weight: Tensor, stride, mask) -> tuple:
    """torch's gradients of map, kernel and bias from one call, those that ``mask`` asks for."""
    return convolution_backward(
        grad,
        x,
        weight,
        [x.shape[1]],
        stride,
        _padding(weight),
        (1, 1),
        False,
        (0, 0),
        x.shape[1],
        mask,
    )


def weight_gradient_grouped(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Each of the N*C maps correlated with its own gradient, a forward convolution; then summed.

    Outer columns are padded beforehand, the rest by the convolution, which skips taps in its own
    padding. A wide kernel is therefore computed with rows and columns exchanged.
    """
    kh, kw = weight.shape[2:]
    if kw > kh and kw >= 15:
        return _correlations(_transpose(grad), _transpose(x), kw, kh).transpose(2, 3)
    return _correlations(grad, x, kh, kw)


def _correlations(grad: Tensor, x: Tensor, kh: int, kw: int) -> Tensor:
    n, c, h, w = x.shape
    outer = _outer_padding(kw)
    padded = F.pad(x, (outer, outer)) if outer else x
    parts = torch.conv2d(
        padded.reshape(1, n * c, h, w + 2 * outer),
        grad.reshape(n * c, 1, h, w),
        None,
        1,
        (kh // 2, kw // 2 - outer),
        1,
        n * c,
    )
    return parts.view(n, c, kh, kw).sum(0).unsqueeze(1)


def weight_gradient_fourier(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Spectra of map and gradient multiplied and summed over N."""
    size = _transform_size(x.shape[2:], weight.shape[2:])
    return _taps(torch.fft.rfft2(x, size), torch.fft.rfft2(grad, size), size, weight.shape[2:])


def gradients_fourier(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Both gradients from one spectrum of ``grad``."""
    size = _transform_size(x.shape[2:], weight.shape[2:])
    grad_spectrum = torch.fft.rfft2(grad, size)
    grad_x = _inverse(grad_spectrum * _kernel_spectrum(weight, size), size, _same_window(x, weight))
    return grad_x, _taps(torch.fft.rfft2(x, size), grad_spectrum, size, weight.shape[2:])


# Pieces -------------------------------------------------------------------------------------------


def _transpose(x: Tensor) -> Tensor:
    return x.transpose(2, 3).contiguous()


@functools.lru_cache(maxsize=1024)
def _smooth(n: int) -> int:
    """Smallest size not below ``n`` without prime factors beyond 5."""
    rest = n
    for prime in (2, 3, 5):
        while rest % prime == 0:
            rest //= prime
    return n if rest == 1 else _smooth(n + 1)


def _transform_size(shape, kernel) -> tuple[int, int]:
    # Half a kernel of zeros is enough: the correlation wraps into them from either side.
    return tuple(_smooth(max(size + k // 2, k)) for size, k in zip(shape, kernel))


def _kernel_spectrum(weight: Tensor, size: tuple[int, int]) -> Tensor:
    """Spectrum of the kernel with its first tap at the origin; its own rows only are transformed."""
    return torch.fft.fft(torch.fft.rfft(weight[:, 0], size[1]), size[0], dim=-2)


def _same_window(x: Tensor, weight: Tensor) -> tuple[tuple[int, int], tuple[int, int]]:
    """Where the convolution of a map with an odd kernel has the part of the map's own size."""
    (kh, kw), (h, w) = weight.shape[2:], x.shape[2:]
    return (kh // 2, h), (kw // 2, w)


def _inverse(spectrum: Tensor, size: tuple[int, int], window) -> Tensor:
    """The part of the map that ``window``, (first, count) per axis modulo the size, selects.

    Only the selected rows are transformed back along the columns.
    """
    rows = _window(torch.fft.ifft(spectrum, dim=-2), -2, *window[0])
    return _window(torch.fft.irfft(rows, size[1]), -1, *window[1]).contiguous()


def _window(x: Tensor, dim: int, first: int, count: int) -> Tensor:
    if first >= 0:
        return x.narrow(dim, first, count)
    return torch.cat((x.narrow(dim, first, -first), x.narrow(dim, 0, count + first)), dim)


def _taps(spectrum: Tensor, grad_spectrum: Tensor, size: tuple[int, int], kernel) -> Tensor:
    """Kernel-sized window around the origin of the correlation; overwrites both spectra."""
    kh, kw = kernel
    # Tensor.conj() would only set a bit, which some dispatch modes of torch.compile ignore inside a
    # registered operator.
    spectrum = spectrum.mul_(grad_spectrum.conj_physical_())
    spectrum = spectrum.sum(0) if spectrum.shape[0] > 1 else spectrum[0]
    return _inverse(spectrum, size, ((-(kh // 2), kh), (-(kw // 2), kw))).unsqueeze(1)
