"""Dilated convolution with learnable spacings: kernels whose few elements are at learnt positions.

A kernel of a large window holds ``m`` weights, each at a real-valued position that is learnt with
it (Khalfaoui-Hassani et al., ICLR 2023; Gaussian and triangular variants in arXiv 2306.00817). The
kernel is constructed from weights and positions, then an ordinary convolution follows.

Versions differ in how an element spreads over the cells around its position: ``v0`` bilinearly, with
mass outside the window lost; ``v1`` as a triangle of width 1, ``max`` as a triangle and ``gauss`` as a
Gaussian of learnable width, each scaled to unit mass inside the window. The published ConvNeXt
weights are ``v0``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mmlk.ops import dispatch
from mmlk.ops.dcls.construct import VERSIONS
from mmlk.ops.reference import (
    dcls_kernel1d_reference,
    dcls_kernel2d_reference,
    dcls_kernel3d_reference,
)

# Official initial widths are 0.23 and 0. At 0 the derivative of |sigma| vanishes and the width of
# ``max`` would never train, so it starts slightly above.
INITIAL_SIGMA = {'max': 0.01, 'gauss': 0.23}


def dcls_kernel1d(
    weight: Tensor,
    positions: Tensor,
    sigma: Tensor | None = None,
    *,
    kernel_size: int | Sequence[int],
    version: str = 'v0',
    backend: str | None = None,
) -> Tensor:
    """Kernel (O, I, k) from positions (1, O, I, m); see `dcls_kernel2d`."""
    args = _arguments_1d(weight, positions, sigma, kernel_size=kernel_size, version=version)
    return dispatch.run('dcls_kernel1d', *args, backend=backend)


def dcls_kernel2d(
    weight: Tensor,
    positions: Tensor,
    sigma: Tensor | None = None,
    *,
    kernel_size: int | Sequence[int],
    version: str = 'v0',
    backend: str | None = None,
) -> Tensor:
    """Dense kernels from the weights and positions of their elements.

    `dcls_kernel2d_reference` is the definition. Position 0 is cell ``k // 2`` of an axis.

    Args:
        weight: (O, I, m), with I = input channels / groups and m elements per kernel.
        positions: (2, O, I, m) in cells from the centre. ``v0`` orders them (rows, columns); the
            other versions (columns, rows), as their authors' code does.
        sigma: (2, O, I, m), for ``max`` and ``gauss`` only, in the order of ``positions``. The width
            is ``|sigma| + 1`` for ``max`` and ``|sigma| + 0.27`` for ``gauss``.
        kernel_size: Window (kh, kw) or one number; even sizes are allowed.
        version: ``'v0'``, ``'v1'``, ``'max'`` or ``'gauss'``.
        backend: ``'triton'`` (CUDA), ``'separable'``, ``'reference'``, or None to choose.

    Returns:
        (O, I, kh, kw) in float32, or in float64 if an argument is.

    Raises:
        ValueError: if a shape, the window or the version does not fit, or sigma is given to a
            version without it, or missing for one with it.

    Note:
        16-bit arguments are computed in float32: rounding a position of 8 cells to bfloat16 moves
        it by 1/32 cell. Deterministic. Gradients of gradients need the reference backend.
    """
    args = _arguments_2d(weight, positions, sigma, kernel_size=kernel_size, version=version)
    return dispatch.run('dcls_kernel2d', *args, backend=backend)


def dcls_kernel3d(
    weight: Tensor,
    positions: Tensor,
    sigma: Tensor | None = None,
    *,
    kernel_size: int | Sequence[int],
    version: str = 'v0',
    backend: str | None = None,
) -> Tensor:
    """Kernel (O, I, kd, kh, kw) from positions (3, O, I, m); see `dcls_kernel2d`.

    ``v0`` orders positions (first, last, middle axis), the other versions (last, middle, first).
    """
    args = _arguments_3d(weight, positions, sigma, kernel_size=kernel_size, version=version)
    return dispatch.run('dcls_kernel3d', *args, backend=backend)


def repulsive_loss(positions: Tensor) -> Tensor:
    """Mean overlap of the elements of each kernel, to keep them apart.

    ``2 / (m (m - 1)) * sum over pairs of max(0, 1 - distance)``, averaged over kernels. Coincident
    elements exert no force on each other, since the distance has no slope at 0.

    Args:
        positions: (N, O, I, m).

    Returns:
        Scalar; 0 for a single element.
    """
    count = positions.shape[-1]
    if count < 2:
        return positions.sum() * 0
    points = positions.flatten(1, -2)
    squared = sum((axis[:, :, None] - axis[:, None]).square() for axis in points)
    first, second = torch.triu_indices(count, count, 1, device=positions.device)
    squared = squared[:, first, second]
    apart = squared > 0
    distance = torch.where(apart, squared, 1.0).sqrt() * apart
    return (1 - distance).clamp(min=0).mean()


def _checked(
    dims: int,
    weight: Tensor,
    positions: Tensor,
    sigma: Tensor | None = None,
    *,
    kernel_size: int | Sequence[int],
    version: str = 'v0',
) -> tuple[Tensor, Tensor, Tensor | None, tuple[int, ...], str]:
    name = f'dcls_kernel{dims}d'
    check_version(name, version)
    kernel_size = checked_window(name, kernel_size, dims)
    if weight.dim() != 3 or weight.shape[-1] < 1 or not weight.is_floating_point():
        raise ValueError(
            f'{name}: weight is {weight.dtype} {tuple(weight.shape)}, expected floating '
            'point (O, I, m) with at least one element m'
        )
    expected = (dims, *weight.shape)
    if positions.shape != expected:
        raise ValueError(
            f'{name}: positions have shape {tuple(positions.shape)}, expected '
            f'{expected} for weight {tuple(weight.shape)}'
        )
    if (sigma is not None) != (version in INITIAL_SIGMA):
        need = 'needs' if sigma is None else 'takes no'
        raise ValueError(
            f'{name}: version {version!r} {need} sigma; versions with sigma are '
            f'{", ".join(INITIAL_SIGMA)}'
        )
    if sigma is not None and sigma.shape != expected:
        raise ValueError(f'{name}: sigma has shape {tuple(sigma.shape)}, expected {expected}')
    return weight, positions, sigma, kernel_size, version


def check_version(name: str, version: str) -> None:
    """Raise a ValueError for a version that there is not."""
    if version not in VERSIONS:
        raise ValueError(f'{name}: version {version!r} is not one of {", ".join(VERSIONS)}')


def checked_window(name: str, kernel_size: int | Sequence[int], dims: int) -> tuple[int, ...]:
    """The window as one size per axis; a ValueError if it is none."""
    sizes = (kernel_size,) * dims if isinstance(kernel_size, int) else tuple(kernel_size)
    if len(sizes) != dims or any(int(size) != size or size < 1 for size in sizes):
        raise ValueError(
            f'{name}: kernel_size {kernel_size!r} is not a positive integer or {dims} of them'
        )
    return tuple(int(size) for size in sizes)


_arguments_1d = functools.partial(_checked, 1)
_arguments_2d = functools.partial(_checked, 2)
_arguments_3d = functools.partial(_checked, 3)


def _definition(reference: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(
        weight: Tensor,
        positions: Tensor,
        sigma: Tensor | None,
        kernel_size: tuple[int, ...],
        version: str,
    ) -> Tensor:
        return reference(weight, positions, sigma, kernel_size=kernel_size, version=version)

    return run


dispatch.declare('dcls_kernel1d', _arguments_1d, _definition(dcls_kernel1d_reference))
dispatch.declare('dcls_kernel2d', _arguments_2d, _definition(dcls_kernel2d_reference))
dispatch.declare('dcls_kernel3d', _arguments_3d, _definition(dcls_kernel3d_reference))
