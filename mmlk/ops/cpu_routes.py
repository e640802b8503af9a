"""Ways to compute a depthwise convolution and its gradients on a CPU with torch's own primitives.

All work on float32 or float64 tensors at stride 1 unless they take a stride, with zero padding
``k // 2``. Maps are (N, C, H, W), weights (C, 1, kh, kw).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

convolution_backward = torch.ops.aten.convolution_backward.default


def _padding(weight: Tensor) -> tuple[int, int]:
    return weight.shape[2] // 2, weight.shape[3] // 2


def forward_native(x: Tensor, weight: Tensor, bias: Tensor | None, stride=(1, 1)) -> Tensor:
    """torch's convolution as it is."""
    return torch.conv2d(x, weight, bias, stride, _padding(weight), (1, 1), x.shape[1])


def input_gradient_native(grad: Tensor, x: Tensor, weight: Tensor, stride=(1, 1)) -> Tensor:
    """torch's gradient with respect to the map."""
    return convolution_backward(grad, x, weight, None, stride, _padding(weight), (1, 1), False,
                                (0, 0), x.shape[1], (True, False, False))[0]


def weight_gradient_native(grad: Tensor, x: Tensor, weight: Tensor, stride=(1, 1)) -> Tensor:
    """torch's gradient with respect to the kernel."""
    return convolution_backward(grad, x, weight, None, stride, _padding(weight), (1, 1), False,
                                (0, 0), x.shape[1], (False, True, False))[1]


def forward_as_gradient(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The input-gradient primitive with flipped taps is the same sum; it is fast for any width."""
    y = input_gradient_native(x, x, weight.flip(2, 3))
    return y if bias is None else y.add_(bias.view(-1, 1, 1))


def weight_gradient_grouped(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Each map correlated with its gradient: a forward convolution of N*C groups, summed over N."""
    n, c, h, w = x.shape
    kh, kw = weight.shape[2:]
    padded = F.pad(x, (kw // 2, kw // 2, kh // 2, kh // 2))
    kernel = grad.reshape(n * c, 1, h, w)
    parts = torch.conv2d(padded.reshape(1, n * c, *padded.shape[2:]), kernel, None, 1, 0, 1, n * c)
    return parts.view(n, c, kh, kw).sum(0).unsqueeze(1)


def _smooth(n: int) -> int:
    """Smallest size not below ``n`` without prime factors beyond 5."""
    while True:
        rest = n
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return n
        n += 1


def _transform_size(x: Tensor, weight: Tensor) -> tuple[int, int]:
    return tuple(_smooth(max(size + k // 2, k)) for size, k in zip(x.shape[2:], weight.shape[2:]))


def forward_fourier(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Product of spectra; the wrapped part of the circular correlation falls into the padding."""
    size = _transform_size(x, weight)
    spectrum = torch.fft.rfft2(x, size) * torch.fft.rfft2(weight[:, 0], size).conj()
    y = torch.roll(torch.fft.irfft2(spectrum, size), _padding(weight), (2, 3))
    y = y[..., :x.shape[2], :x.shape[3]]
    return y.contiguous() if bias is None else y + bias.view(-1, 1, 1)


def input_gradient_fourier(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """The forward sum with flipped taps."""
    return forward_fourier(grad, weight.flip(2, 3), None)


def weight_gradient_fourier(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Spectra of map and gradient, multiplied and summed over N."""
    size, (kh, kw) = _transform_size(x, weight), weight.shape[2:]
    spectrum = (torch.fft.rfft2(x, size) * torch.fft.rfft2(grad, size).conj()).sum(0)
    taps = torch.roll(torch.fft.irfft2(spectrum, size), _padding(weight), (1, 2))
    return taps[:, :kh, :kw].unsqueeze(1).contiguous()
