"""Construction of DCLS kernels, forward and backward, without the grid of the definition.

`dcls_kernel2d_reference` defines the kernel through a tensor of (elements x window) cells. Much
smaller computations give the same kernel. On a CPU that can compile loops, two-dimensional float32
windows are those of `mmlk.ops.dcls.loops`; otherwise:

* sampling: the bilinear kernel of ``v0`` is the transpose of reading a picture at the elements'
  positions, and its gradients are that reading and its slopes, for which torch has vectorised code.
  Used on CPU for ``v0``, and for ``v1`` with all elements inside the window, where the two differ
  by a constant and by the slope at integers.
* profiles: every version is a product of one profile per axis, so the kernel is the product
  ``F_0 diag(weight / mass) F_1^T`` of the profiles of all elements, one batched matrix product per
  channel pair; for N = 3 the last two axes are merged first. Used for everything else, and always on
  accelerators, where it is deterministic and a scatter with atomics is not.

Both follow the subgradients of the definition: at an integer position the slope of ``v0`` is the
right-hand one, that of ``v1`` and ``max`` is zero.

Weights are (B, m) here, with B channel pairs; positions and widths (N, B, m), in the order of their
components. `driven_axes` says which axis a component moves.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from mmlk.ops import jit
from mmlk.ops.dcls import loops as compiled

MASS_EPSILON = 1e-7
SIGMA_OFFSET = {'max': 1.0, 'gauss': 0.27}
VERSIONS = ('v0', 'v1', 'max', 'gauss')
_ROWS = 192
# Elements further out do not occur; beyond some distance cells are no 32-bit integers any more.
_FARTHEST = 1e4
_SAMPLING = (0, 0, True)  # bilinear, zeros outside, coordinates -1 and 1 are centres of cells
_sample = torch.ops.aten.grid_sampler_2d.default
_sample_backward = torch.ops.aten.grid_sampler_2d_backward.default


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
    if any(tensor.dtype == torch.float64 for tensor in tensors):
        return torch.float64
    return torch.float32


def construct(
    weight: Tensor,
    positions: Tensor,
    sigma: Tensor | None,
    kernel_size: Sequence[int],
    version: str,
) -> Tensor:
    """Kernel (O, I, *kernel_size) from weight (O, I, m) and positions, sigma (N, O, I, m)."""
    with _plain_precision(weight):
        w, p, s = _arrange(weight, positions, sigma, version)
        if _can_compile(w, p, kernel_size):
            kernel = compiled.construct(
                w.contiguous(), _per_axis(p, version), _per_axis(s, version), kernel_size, version
            )
            return kernel.view(*weight.shape[:2], *kernel_size)
        grid = _sampling_grid(p, kernel_size, version)
        if grid is not None:
            kernel = _sampled_kernel(w, grid, kernel_size, version)
        else:
            rows = _chunks(w)
            parts = [
                _profiles_forward(
                    w[each], p[:, each], None if s is None else s[:, each], kernel_size, version
                )
                for each in rows
            ]
            kernel = torch.cat(parts) if len(rows) > 1 else parts[0]
    return kernel.view(*weight.shape[:2], *kernel_size)


def construct_backward(
    grad: Tensor,
    weight: Tensor,
    positions: Tensor,
    sigma: Tensor | None,
    kernel_size: Sequence[int],
    version: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of weight, positions and sigma (empty without sigma), in their dtypes."""
    grad_sigma = weight.new_empty(0)
    with _plain_precision(weight):
        w, p, s = _arrange(weight, positions, sigma, version)
        g = grad.to(w.dtype).reshape(w.shape[0], *kernel_size)
        grid = None if _can_compile(w, p, kernel_size) else _sampling_grid(p, kernel_size, version)
        if _can_compile(w, p, kernel_size):
            grad_weight, *others = compiled.gradients(
                g.contiguous(),
                w.contiguous(),
                _per_axis(p, version),
                _per_axis(s, version),
                version,
            )
            order = driven_axes(version, 2)
            grad_positions = torch.stack([others[axis] for axis in order])
            if sigma is not None:
                by_width = torch.stack([others[2 + axis] for axis in order])
                grad_sigma = (by_width.view_as(sigma) * sigma.sign()).to(sigma.dtype)
        elif grid is not None:
            grad_weight, grad_positions = _sampled_gradients(g, w, p, grid, version)
        else:
            results = w.new_empty(1 + len(p) * (1 if s is None else 2), *w.shape)
            for rows in _chunks(w):
                _profiles_backward(
                    g[rows],
                    w[rows],
                    p[:, rows],
                    None if s is None else s[:, rows],
                    version,
                    results[:, rows],
                )
            grad_weight, grad_positions = (
                each.clone() for each in (results[0], results[1 : 1 + len(p)])
            )
            if sigma is not None:
                grad_sigma = (results[1 + len(p) :].view_as(sigma) * sigma.sign()).to(sigma.dtype)
    return (
        grad_weight.view_as(weight).to(weight.dtype),
        grad_positions.view_as(positions).to(positions.dtype),
        grad_sigma,
    )


def _plain_precision(weight: Tensor):
    """Context in which autocast, which would round positions to 16 bits, is off."""
    device = weight.device.type
    if device != 'meta' and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return contextlib.nullcontext()


def _arrange(
    weight: Tensor, positions: Tensor, sigma: Tensor | None, version: str
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Weight (B, m), positions from the centre and widths (N, B, m), in the computing dtype."""
    dtype, shape = compute_dtype(weight, positions), (len(positions), -1, weight.shape[-1])
    p, s = positions.to(dtype).reshape(shape), None
    if sigma is not None:
        s = sigma.to(dtype).reshape(shape).abs().add_(SIGMA_OFFSET[version])
    return weight.to(dtype).reshape(shape[1:]), p, s


def _can_compile(w: Tensor, p: Tensor, kernel_size: Sequence[int]) -> bool:
    return (
        len(kernel_size) == 2
        and w.dtype == torch.float32
        and w.is_cpu
        and p.is_cpu
        and w.numel() > 0
        and jit.refusal() is None
        and compiled.refusal(w.shape[1], *kernel_size) is None
    )


def _per_axis(components: Tensor | None, version: str) -> tuple[Tensor, Tensor] | None:
    """(B, m) of the two axes."""
    if components is None:
        return None
    return tuple(components[each].contiguous() for each in driven_axes(version, 2))


def _by_component(per_axis: Sequence, version: str) -> list:
    return [per_axis[axis] for axis in driven_axes(version, len(per_axis))]


def _chunks(w: Tensor) -> list[slice]:
    """Rows to compute at a time: on a CPU, as many as keep intermediate results in its cache."""
    step = _ROWS if w.device.type == 'cpu' else max(len(w), 1)
    return [slice(start, start + step) for start in range(0, max(len(w), 1), step)]


# Sampling -----------------------------------------------------------------------------------------


def _sampling_grid(p: Tensor, kernel_size: Sequence[int], version: str) -> Tensor | None:
    """Positions as coordinates (B, 1, m, 2) of (column, row), or None if sampling does not apply.

    A coordinate is the position over half the window. Only where that is a power of two, as for 17,
    does it come back bit by bit, and integer positions have to.
    """
    if version not in ('v0', 'v1') or len(p) != 2 or p.device.type != 'cpu' or p.numel() == 0:
        return None
    if any(size < 3 or size - 1 & size - 2 for size in kernel_size):
        return None
    scales = [2 / (size - 1) for size in _by_component(kernel_size, version)]
    scale = scales[0] if scales[0] == scales[1] else p.new_tensor(scales)[:, None, None]
    coordinates = p * scale
    low, high = (each.item() for each in torch.aminmax(coordinates))
    farthest = _FARTHEST if version == 'v0' else 1.0
    if not (low >= -farthest and high <= farthest):  # also where one is not a number
        return None
    if version == 'v0':
        coordinates = coordinates.flip(0)
    return coordinates[:, :, None].permute(1, 2, 3, 0)


def _sampled_kernel(w: Tensor, grid: Tensor, kernel_size: Sequence[int], version: str) -> Tensor:
    if version == 'v1':
        w = w / (1.0 + MASS_EPSILON)
    picture = w.new_empty(1).expand(len(w), 1, *kernel_size)  # only its shape matters
    return _sample_backward(w[:, None, None], picture, grid, *_SAMPLING, (True, False))[0]


def _sampled_gradients(
    g: Tensor, w: Tensor, p: Tensor, grid: Tensor, version: str
) -> tuple[Tensor, Tensor]:
    if version == 'v1':
        w = w / (1.0 + MASS_EPSILON)
    picture = g[:, None]
    grad_weight = _sample(picture, grid, *_SAMPLING)
    slopes = _sample_backward(w[:, None, None], picture, grid, *_SAMPLING, (False, True))[1]
    grad_positions = torch.empty_like(p, memory_format=torch.contiguous_format)
    for each, axis in zip(grad_positions, driven_axes(version, 2)):
        torch.mul(slopes[:, 0, :, 1 - axis], 2 / (g.shape[1 + axis] - 1), out=each)
    if version == 'v1':
        grad_weight.div_(1.0 + MASS_EPSILON)
        for each, axis in zip(zip(grad_positions, p), driven_axes(version, 2)):
            cells = each[1] + g.shape[1 + axis] // 2
            each[0].masked_fill_(cells == cells.floor(), 0.0)
    return grad_weight, grad_positions


# Profiles -----------------------------------------------------------------------------------------


def _profiles(
    p: Tensor, s: Tensor | None, kernel_size: Sequence[int], version: str
) -> list[tuple[slice, Tensor, Tensor]]:
    """Profiles of all components, those of equal windows as one tensor.

    Returns:
        Of each group: its components, the profiles' values (n, size, B * m), and the cells' distances
        from the position, in units of the width for ``gauss`` and in cells otherwise.
    """
    sizes = _by_component(kernel_size, version)
    groups = [slice(0, len(p))]
    if len(set(sizes)) > 1:
        groups = [slice(component, component + 1) for component in range(len(p))]
    results = []
    for group in groups:
        size = sizes[group.start]
        cells = torch.arange(size, dtype=p.dtype, device=p.device)[:, None]
        distance = cells - (p[group] + size // 2).flatten(1)[:, None]
        width = None if s is None else s[group].flatten(1)[:, None]
        if version == 'gauss':
            distance.div_(width)
            values = distance.square().mul_(-0.5).exp_()
        else:
            values = distance.abs()
            values = (
                values.neg_().add_(1.0) if width is None else torch.sub(width, values, out=values)
            )
            values.clamp_(min=0)
        results.append((group, values, distance))
    return results


def _matrices(
    groups: Sequence[tuple[slice, Tensor, Tensor]], w: Tensor, version: str
) -> list[Tensor]:
    """Profiles (B, size, m) of each axis."""
    return _by_component(
        [each.view(-1, *w.shape).transpose(0, 1) for _, values, _ in groups for each in values],
        version,
    )


def _merge(profiles: Sequence[Tensor], like: Tensor) -> Tensor:
    """Products (B, product of sizes, m) of the profiles of several axes, first axis slowest."""
    if not profiles:
        return like.new_ones(like.shape[0], 1, like.shape[-1])
    merged = profiles[0]
    for profile in profiles[1:]:
        merged = (merged[:, :, None] * profile[:, None]).flatten(1, 2)
    return merged


def _masses(groups: Sequence[tuple[slice, Tensor, Tensor]], w: Tensor) -> Tensor:
    """Mass (N, B, m) of each profile inside the window."""
    masses = [values.sum(1) for _, values, _ in groups]
    return (torch.cat(masses) if len(masses) > 1 else masses[0]).view(-1, *w.shape)


def _product(masses: Tensor) -> Tensor:
    return functools.reduce(torch.mul, masses.unbind()) + MASS_EPSILON


def _products_of_others(masses: Tensor) -> Tensor:
    """Product over the other components, for each component."""
    if len(masses) == 1:
        return torch.ones_like(masses)
    if len(masses) == 2:
        return masses.flip(0)
    return torch.stack((masses[1] * masses[2], masses[0] * masses[2], masses[0] * masses[1]))


def _profiles_forward(
    w: Tensor, p: Tensor, s: Tensor | None, kernel_size: Sequence[int], version: str
) -> Tensor:
    groups = _profiles(p, s, kernel_size, version)
    if version != 'v0':
        w = w / _product(_masses(groups, w))
    first, *others = _matrices(groups, w, version)
    return torch.bmm(first * w[:, None], _merge(others, w).transpose(1, 2)).flatten(1)


def _profiles_backward(
    g: Tensor, w: Tensor, p: Tensor, s: Tensor | None, version: str, out: Tensor
) -> None:
    """Write the gradients of weight, positions and widths to ``out`` (1 + N or 1 + 2N, B, m)."""
    dims, axes = len(p), driven_axes(version, len(p))
    groups = _profiles(p, s, g.shape[1:], version)
    matrices = _matrices(groups, w, version)
    scale = w
    if version != 'v0':
        masses = _masses(groups, w)
        mass = _product(masses)
        scale = w / mass
    for group, values, distance in groups:
        grad = torch.empty_like(values)
        for component, each in zip(range(group.start, group.stop), grad):
            axis = axes[component]
            rest = _merge([matrices[other] for other in range(dims) if other != axis], w)
            along = g.movedim(1 + axis, 1).reshape(len(g), g.shape[1 + axis], -1)
            # Not as the product's ``out``: with such strides it takes three times as long.
            each.view(-1, *w.shape).transpose(0, 1).copy_(torch.bmm(along, rest))
        if group.start == 0:
            torch.sum((grad[0] * values[0]).view(-1, *w.shape), 0, out=out[0])
            if version != 'v0':
                out[0].div_(mass)
                shift = (_products_of_others(masses) * (out[0] * scale)).neg_().flatten(1)
        if version == 'v0':
            grad.mul_(scale.reshape(-1))
        else:
            torch.addcmul(shift[group, None], grad, scale.reshape(-1), out=grad)
        moved, widened = out[1 : 1 + dims][group], out[1 + dims :][group]
        _slopes(
            grad,
            values,
            distance,
            None if s is None else s[group].flatten(1),
            version,
            moved.flatten(1),
            widened.flatten(1),
        )


def _slopes(
    grad: Tensor,
    profiles: Tensor,
    distance: Tensor,
    s: Tensor | None,
    version: str,
    by_position: Tensor,
    by_width: Tensor,
) -> None:
    """Write the gradients (n, B * m) of positions and widths; the other arguments are spent."""
    if version == 'gauss':
        grad = grad.mul_(profiles).mul_(distance)
        torch.sum(grad, 1, out=by_position).div_(s)
        torch.sum(grad.mul_(distance), 1, out=by_width).div_(s)
        return
    if version == 'v0':
        # The slope is the right-hand one: cell floor(p) falls and the next one rises.
        upper, lower = (distance > 0) & (distance <= 1), (distance > -1) & (distance <= 0)
        slope = upper.to(grad.dtype).sub_(lower.to(grad.dtype))
        torch.sum(grad.mul_(slope), 1, out=by_position)
        return
    # torch's own gradient of relu: what the profile's zeros receive is dropped.
    torch.ops.aten.threshold_backward.grad_input(grad, profiles, 0, grad_input=grad)
    if version == 'max':
        torch.sum(grad, 1, out=by_width)
    torch.sum(grad.mul_(distance.sign_()), 1, out=by_position)
