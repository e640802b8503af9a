"""Construction of DCLS kernels, forward and backward, without the grid of the definition.

`dcls_kernel2d_reference` defines the kernel through a tensor of (elements x window) cells. Every
version is a product of one profile per axis, so two much smaller computations give the same kernel:

* corners: ``v0`` and ``v1`` touch two neighbouring cells per axis, so an element adds 2**N values.
  They are scattered into a window with a margin of two cells, which catches what falls outside.
  In the backward pass the same cells are gathered. Used on CPU.
* profiles: the kernel is the product ``F_0 diag(weight / mass) F_1^T`` of the profiles of all
  elements, one batched matrix product per channel pair; for N = 3 the last two axes are merged
  first. Used for the wide profiles of ``max`` and ``gauss``, and for all versions on accelerators,
  where it is deterministic and a scatter with atomics is not.

Both follow the subgradients of the definition: at an integer position the slope of ``v0`` is the
right-hand one, that of ``v1`` and ``max`` is zero.

Positions are ordered by axis here, (N, B, m) with B channel pairs, and count from the first cell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

MASS_EPSILON = 1e-7
SIGMA_OFFSET = {'max': 1.0, 'gauss': 0.27}
VERSIONS = ('v0', 'v1', 'max', 'gauss')
_MARGIN = 2
_ROWS = 128


def driven_axes(version: str, dims: int) -> tuple[int, ...]:
    """Axis of the kernel that each of the ``dims`` position components moves along.

    The published orders are their own inverses: the same tuple also gives the component that moves
    along each axis.
    """
    if version == 'v0':
        return ((0,), (0, 1), (0, 2, 1))[dims - 1]
    return tuple(reversed(range(dims)))


def compute_dtype(*tensors: Tensor) -> torch.dtype:
    """Float32, or float64 where an argument is: 16-bit positions would be off by 1/16 cell."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def construct(weight: Tensor, positions: Tensor, sigma: Tensor | None, kernel_size: Sequence[int],
              version: str) -> Tensor:
    """Kernel (O, I, *kernel_size) from weight (O, I, m) and positions, sigma (N, O, I, m)."""
    with torch.autocast(weight.device.type, enabled=False):
        w, p, s = _arrange(weight, positions, sigma, kernel_size, version)
        if _takes_corners(weight, version):
            kernel = _corners_forward(w, p, kernel_size, version)
        else:
            kernel = torch.cat([
                _profiles_forward(w[rows], p[:, rows], None if s is None else s[:, rows],
                                  kernel_size, version) for rows in _chunks(w)
            ])
    return kernel.reshape(*weight.shape[:2], *kernel_size)


def construct_backward(grad: Tensor, weight: Tensor, positions: Tensor, sigma: Tensor | None,
                       kernel_size: Sequence[int], version: str) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of weight, positions and sigma (empty without sigma), in their dtypes."""
    with torch.autocast(weight.device.type, enabled=False):
        w, p, s = _arrange(weight, positions, sigma, kernel_size, version)
        g = grad.to(w.dtype).reshape(w.shape[0], *kernel_size)
        if _takes_corners(weight, version):
            grads = _corners_backward(g, w, p, version)
        else:
            parts = [
                _profiles_backward(g[rows], w[rows], p[:, rows],
                                   None if s is None else s[:, rows], version)
                for rows in _chunks(w)
            ]
            grads = (torch.cat([part[0] for part in parts]),
                     *(torch.cat([part[i] for part in parts], dim=1) for i in (1, 2)))
    grad_weight = grads[0].reshape(weight.shape).to(weight.dtype)
    grad_positions = _by_component(grads[1], version).reshape(positions.shape).to(positions.dtype)
    if sigma is None:
        return grad_weight, grad_positions, weight.new_empty(0)
    grad_sigma = _by_component(grads[2], version).reshape(sigma.shape).to(sigma.dtype)
    return grad_weight, grad_positions, grad_sigma.mul_(sigma.sign())


def _takes_corners(weight: Tensor, version: str) -> bool:
    return weight.device.type == 'cpu' and version in ('v0', 'v1')


def _chunks(w: Tensor) -> list[slice]:
    """Rows to compute at a time: on a CPU, as many as keep intermediate results in its cache."""
    step = _ROWS if w.device.type == 'cpu' else max(len(w), 1)
    return [slice(start, start + step) for start in range(0, max(len(w), 1), step)]


def _by_component(values: Tensor, version: str) -> Tensor:
    """Swap (N, ...) between the order of position components and that of the axes they drive."""
    if version == 'v0':
        return values[[0, 2, 1]] if len(values) == 3 else values
    return values.flip(0)


def _arrange(weight: Tensor, positions: Tensor, sigma: Tensor | None, kernel_size: Sequence[int],
             version: str) -> tuple[Tensor, Tensor, Tensor | None]:
    """Weight (B, m), positions from the first cell and widths (N, B, m), both ordered by axis."""
    dtype = compute_dtype(weight, positions)
    shape = (len(kernel_size), -1, weight.shape[-1])
    p = _by_component(positions.to(dtype).reshape(shape), version)
    p = p + _per_axis([size // 2 for size in kernel_size], p)
    s = None
    if sigma is not None:
        s = _by_component(sigma.to(dtype).reshape(shape), version).abs()
        s = s.add_(SIGMA_OFFSET[version])
    return weight.to(dtype).reshape(shape[1:]), p, s


def _per_axis(values: Sequence[int], like: Tensor) -> Tensor | int:
    """Numbers to combine with (N, B, m); a plain one where all are equal."""
    if len(set(values)) == 1:
        return values[0]
    return like.new_tensor(values)[:, None, None]


def _cells(p: Tensor, kernel_size: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Lower cell and fraction (N, B, m) of each position, and indices (B, 2**N * m) of corners.

    Cells more than one step outside the window count as two steps outside; the indices refer to a
    flat window with the margin around it. Corners are ordered with the first axis slowest.
    """
    lower = p.floor()
    fraction = p - lower
    limits = _per_axis(kernel_size, p)
    lower = lower.clamp_(min=-_MARGIN)
    lower = lower.clamp_(max=limits) if isinstance(limits, int) else lower.minimum(limits)
    # A position that is not finite shall show in the kernel, so its cell must lie inside.
    lower = lower.masked_fill_(fraction.isnan(), 0)
    strides, offsets = _strides(kernel_size), [0]
    for stride in strides:
        offsets = [offset + step for offset in offsets for step in (0, stride)]
    offsets = torch.tensor(offsets, device=p.device) + _MARGIN * sum(strides)
    index = lower[-1].long()
    for axis in range(len(kernel_size) - 1):
        index = index.add(lower[axis].long(), alpha=strides[axis])
    return lower, fraction, (index[:, None] + offsets[:, None]).flatten(1)


def _strides(kernel_size: Sequence[int]) -> list[int]:
    padded = [size + 2 * _MARGIN for size in kernel_size]
    return [math.prod(padded[axis + 1:]) for axis in range(len(padded))]


def _corners_forward(w: Tensor, p: Tensor, kernel_size: Sequence[int], version: str) -> Tensor:
    lower, fraction, index = _cells(p, kernel_size)
    if version == 'v1':
        masses, _ = _window_masses(lower, fraction, kernel_size)
        w = w / (masses.prod(0) + MASS_EPSILON)
    values = w[:, None]
    for shares in torch.stack((1 - fraction, fraction), dim=2):
        values = (values[:, :, None] * shares[:, None]).flatten(1, 2)
    padded = [size + 2 * _MARGIN for size in kernel_size]
    kernel = w.new_zeros(w.shape[0], math.prod(padded))
    kernel.scatter_add_(1, index, values.flatten(1))
    inner = tuple(slice(_MARGIN, -_MARGIN) for _ in kernel_size)
    return kernel.view(-1, *padded)[(slice(None), *inner)].contiguous()


def _corners_backward(g: Tensor, w: Tensor, p: Tensor, version: str) -> tuple[Tensor, Tensor]:
    kernel_size = g.shape[1:]
    dims, count = len(kernel_size), w.shape[1]
    lower, fraction, index = _cells(p, kernel_size)
    padded = F.pad(g, (_MARGIN, _MARGIN) * dims).flatten(1)
    corners = padded.gather(1, index).view(-1, *(2,) * dims, count)
    inside, slopes = _interpolate(corners, fraction)
    if version == 'v0':
        return inside, slopes.mul_(w)
    masses, edges = _window_masses(lower, fraction, kernel_size)
    mass = masses.prod(0) + MASS_EPSILON
    per_mass = w / mass
    grad_mass = -inside * per_mass / mass
    grad_positions = slopes * per_mass + edges * grad_mass * _products_of_others(masses)
    return inside / mass, grad_positions.masked_fill_(fraction == 0, 0.0)


def _interpolate(corners: Tensor, fraction: Tensor) -> tuple[Tensor, Tensor]:
    """Multilinear interpolation of corners (B, 2, .., 2, m), and its slope along every axis."""
    values, slopes = corners, []
    for axis in reversed(range(len(fraction))):
        part = fraction[axis].view(-1, *(1,) * axis, fraction.shape[2])
        low, high = values.unbind(-2)
        slopes = [torch.lerp(*each.unbind(-2), part) for each in slopes]
        slopes.insert(0, high - low)
        values = torch.lerp(low, high, part)
    return values, torch.stack(slopes)


def _window_masses(lower: Tensor, fraction: Tensor,
                   kernel_size: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Mass of each axis' triangle inside the window, and its slope with the position."""
    limits = _per_axis(kernel_size, fraction)
    has_lower = ((lower >= 0) & (lower < limits)).to(fraction.dtype)
    has_upper = ((lower >= -1) & (lower < limits - 1)).to(fraction.dtype)
    return torch.lerp(has_lower, has_upper, fraction), has_upper - has_lower


def _products_of_others(masses: Tensor) -> Tensor:
    """Product over the other axes, for each axis."""
    if len(masses) == 1:
        return torch.ones_like(masses)
    if len(masses) == 2:
        return masses.flip(0)
    return torch.stack((masses[1] * masses[2], masses[0] * masses[2], masses[0] * masses[1]))


def _profiles(p: Tensor, s: Tensor | None, size: int, version: str) -> tuple[Tensor, Tensor]:
    """Values (n, B, size, m) of the profiles of n axes, and the cells' distances from the position.

    Distances are in units of the width for ``gauss`` and in cells otherwise.
    """
    distance = torch.arange(size, dtype=p.dtype, device=p.device)[:, None] - p[:, :, None]
    if version == 'gauss':
        distance = distance.div_(s[:, :, None])
        return distance.square().mul_(-0.5).exp_(), distance
    width = 1.0 if s is None else s[:, :, None]
    return (width - distance.abs()).clamp_(min=0), distance


def _slopes(grad: Tensor, profiles: Tensor, distance: Tensor, s: Tensor | None,
            version: str) -> tuple[Tensor, Tensor | None]:
    """Gradients (n, B, m) of positions and widths from those of the profiles; ``grad`` is spent."""
    if version == 'gauss':
        grad = grad.mul_(profiles).mul_(distance)
        by_position = grad.sum(2)
        return by_position.div_(s), grad.mul_(distance).sum(2).div_(s)
    if version == 'v0':
        # The slope is the right-hand one: cell floor(p) falls and the next one rises.
        upper, lower = (distance > 0) & (distance <= 1), (distance > -1) & (distance <= 0)
        return grad.mul_(upper.to(grad.dtype).sub_(lower.to(grad.dtype))).sum(2), None
    grad = grad.mul_(profiles.sign())
    by_width = grad.sum(2) if version == 'max' else None
    return grad.mul_(distance.sign_()).sum(2), by_width


def _groups(kernel_size: Sequence[int]) -> list[slice]:
    """Axes that can be computed as one tensor: all of a cubic window, else each by itself."""
    dims = len(kernel_size)
    if len(set(kernel_size)) == 1:
        return [slice(0, dims)]
    return [slice(axis, axis + 1) for axis in range(dims)]


def _merge(profiles: Sequence[Tensor], like: Tensor) -> Tensor:
    """Products (B, product of sizes, m) of the profiles of several axes, first axis slowest."""
    if len(profiles) == 1:
        return profiles[0]
    merged = like.new_ones(like.shape[0], 1, like.shape[-1])
    for profile in profiles:
        merged = (merged[:, :, None] * profile[:, None]).flatten(1, 2)
    return merged


def _profiles_forward(w: Tensor, p: Tensor, s: Tensor | None, kernel_size: Sequence[int],
                      version: str) -> Tensor:
    profiles, masses = [], []
    for group in _groups(kernel_size):
        values, _ = _profiles(
            p[group], None if s is None else s[group], kernel_size[group.start], version)
        profiles += values
        masses.append(values.sum(2))
    if version != 'v0':
        w = w / (torch.cat(masses).prod(0) + MASS_EPSILON)
    kernel = torch.bmm(profiles[0] * w[:, None], _merge(profiles[1:], w).transpose(1, 2))
    return kernel.flatten(1)


def _profiles_backward(g: Tensor, w: Tensor, p: Tensor, s: Tensor | None,
                       version: str) -> tuple[Tensor, Tensor, Tensor]:
    axes, groups = range(len(p)), _groups(g.shape[1:])
    profiles, distances = [], []
    for group in groups:
        values, distance = _profiles(
            p[group], None if s is None else s[group], g.shape[1 + group.start], version)
        profiles += values
        distances.append((values, distance))
    grads = []
    for axis in axes:
        rest = _merge([profiles[other] for other in axes if other != axis], w)
        along = g.movedim(1 + axis, 1).reshape(len(g), g.shape[1 + axis], -1)
        grads.append(torch.bmm(along, rest))
    inside = grad_weight = (grads[0] * profiles[0]).sum(1)
    scale, shift = w.expand_as(p), torch.zeros_like(p)
    if version != 'v0':
        masses = torch.cat([values.sum(2) for values, _ in distances])
        mass = masses.prod(0) + MASS_EPSILON
        grad_weight, scale = inside / mass, (w / mass).expand_as(p)
        shift = _products_of_others(masses) * (-inside * scale[0] / mass)
    by_position, by_width = [], []
    for group, (values, distance) in zip(groups, distances):
        grad = torch.stack(grads[group]) if group.stop - group.start > 1 else grads[group.start][None]
        grad = torch.addcmul(shift[group, :, None], grad, scale[group, :, None])
        moved, widened = _slopes(
            grad, values, distance, None if s is None else s[group], version)
        by_position.append(moved)
        by_width += [] if widened is None else [widened]
    return grad_weight, torch.cat(by_position), torch.cat(by_width) if by_width else p[:0]
