"""Gradients over kernel and map heights where oneDNN's weight gradient is silently wrong.

On AVX2 machines torch's weight gradient of contiguous maps is off by a tenth and more for kernels
up to 3 wide and from 35 tall, on some map heights. The grid crosses kernel sizes with those
heights and compares with Fourier transforms in float64.
"""

import pytest
import torch

from mmlk.ops import depthwise_conv2d
from tests.cases import TOLERANCE, assert_close
from tests.ops.helpers import leaf, outputs_and_gradients

MAP_HEIGHTS = (40, 48, 56, 60, 62, 64, 72, 80, 96, 128, 160, 200)


@pytest.fixture(autouse=True)
def _without_compiled_loops(monkeypatch):
    monkeypatch.setenv('MMLK_JIT', '0')


def correlation(image, template, sizes, offsets):
    """``sum over p of template[p] * image[p + o - offset]`` for offsets o in ``sizes``, float64."""
    size = [a + b + abs(c) for a, b, c in zip(image.shape[2:], template.shape[2:], sizes)]
    spectrum = torch.fft.rfft2(image.double(), size)
    spectrum = spectrum * torch.fft.rfft2(template.double(), size).conj()
    full = torch.roll(torch.fft.irfft2(spectrum, size), offsets, (2, 3))
    return full[..., : sizes[0], : sizes[1]]


def closed_forms(x, weight, cotangent):
    """Output, input gradient and weight gradient as three correlations."""
    centre = [k // 2 for k in weight.shape[2:]]
    taps, size = weight.transpose(0, 1), x.shape[2:]
    return (
        correlation(x, taps, size, centre),
        correlation(cotangent, taps.flip(2, 3), size, centre),
        correlation(x, cotangent, weight.shape[2:], centre).sum(0).unsqueeze(1),
    )


def check(height, kernel, width=9):
    x, weight = torch.randn(1, 8, height, width), torch.randn(8, 1, *kernel)
    cotangent = torch.randn_like(x)
    got = outputs_and_gradients(depthwise_conv2d, [leaf(x), leaf(weight)], cotangent)
    for name, mine, theirs in zip(
        ('y', 'grad_x', 'grad_weight'), got, closed_forms(x, weight, cotangent)
    ):
        assert_close(
            f'{name} of {kernel} on height {height}', mine, theirs, TOLERANCE[torch.float32][1]
        )


@pytest.mark.parametrize('kernel_width', (1, 3))
@pytest.mark.parametrize('kernel_height', (3, 11, 31, 33, 35, 37, 41, 45, 49, 51, 61))
def test_bands_on_every_listed_height(kernel_height, kernel_width):
    for height in (kernel_height, *MAP_HEIGHTS):
        check(height, (kernel_height, kernel_width))


@pytest.mark.slow
@pytest.mark.parametrize('kernel_width', (1, 3, 5, 7, 9, 11, 17, 31, 51, 61))
@pytest.mark.parametrize('kernel_height', range(3, 62, 2))
def test_every_height_and_width(kernel_height, kernel_width):
    for height in (kernel_height, *MAP_HEIGHTS):
        check(height, (kernel_height, kernel_width), width=max(9, kernel_width // 2 + 1))
