"""The definition of every operator in plain torch, written to be read; also the export path.

A function here has the signature of its public twin. ``backend`` is accepted for that reason only:
there is nothing to choose.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mmlk.ops.maps import channels_last, pair
from mmlk.ops.states import BatchNormState


def depthwise_conv2d_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    *,
    backend: str | None = None,
) -> Tensor:
    """Each channel convolved with its own kernel, zero padded by ``k // 2`` per axis.

    ``y[n, c, i, j] = bias[c] + sum over (a, b) of
    weight[c, 0, a, b] * x[n, c, i * sh + a - kh // 2, j * sw + b - kw // 2]``, x being zero outside
    the map. At stride 1 the output has the input's size, otherwise ``ceil(size / stride)``.

    Args:
        x: (N, C, H, W).
        weight: (C, 1, kh, kw), kh and kw odd.
        bias: (C,).
        stride: Step in rows and columns.

    Returns:
        (N, C, ceil(H / sh), ceil(W / sw)).
    """
    kernel = weight.shape[2:]
    return F.conv2d(x, weight, bias, pair(stride), (kernel[0] // 2, kernel[1] // 2), 1, x.shape[1])


def expanding_depthwise_conv2d_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | tuple[int, int] = 1,
    *,
    backend: str | None = None,
) -> Tensor:
    """`depthwise_conv2d_reference` with m kernels per channel; their outputs are adjacent.

    Args:
        x: (N, C, H, W).
        weight: (C m, 1, kh, kw), sides odd.
        bias: (C m,).
        stride: Step in rows and columns.

    Returns:
        (N, C m, ceil(H / sh), ceil(W / sw)).
    """
    return depthwise_conv2d_reference(x, weight, bias, stride)


def pointwise_conv2d_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, backend: str | None = None
) -> Tensor:
    """1x1 convolution: ``y[n, o, i, j] = bias[o] + sum over c of weight[o, c] * x[n, c, i, j]``.

    With groups, output channel o sums over the channels of its own group only.

    Args:
        x: (N, C, H, W).
        weight: (O, C / groups, 1, 1); the number of groups follows from the shapes.
        bias: (O,).

    Returns:
        (N, O, H, W).
    """
    return F.conv2d(x, weight, bias, groups=x.shape[1] // weight.shape[1])


def channel_mlp_reference(
    x: Tensor,
    weight1: Tensor,
    bias1: Tensor,
    weight2: Tensor,
    bias2: Tensor,
    scale: Tensor | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """``scale * (gelu(x W1^T + b1) W2^T + b2)`` on the last axis, with the exact (erf) GELU.

    Args:
        x: (..., C).
        weight1: (H, C).
        bias1: (H,).
        weight2: (O, H).
        bias2: (O,).
        scale: (O,); None leaves it out.

    Returns:
        (..., O).
    """
    y = F.linear(F.gelu(F.linear(x, weight1, bias1)), weight2, bias2)
    return y if scale is None else y * scale


def folded_linear_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    gelu: bool = False,
    backend: str | None = None,
) -> Tensor:
    """``[residual +] act(x W^T + b)`` on the last axis, ``act`` the exact GELU or nothing.

    Args:
        x: (..., K).
        weight: (N, K), or (N, K, 1, 1).
        bias: (N,).
        residual: (..., N).
        gelu: Apply GELU.

    Returns:
        (..., N).
    """
    y = F.linear(x, weight.flatten(1), bias)
    y = F.gelu(y) if gelu else y
    return y if residual is None else residual + y


def conv_norm_mlp_reference(
    x: Tensor,
    mixed: Tensor,
    norm: BatchNormState | None,
    weight1: Tensor,
    norm1: BatchNormState,
    weight2: Tensor,
    norm2: BatchNormState,
    *,
    backend: str | None = None,
) -> Tensor:
    """``x + norm2(conv2(gelu(norm1(conv1(norm(mixed))))))``, the convolutions 1x1 without bias.

    Args:
        x: (N, C, H, W).
        mixed: (N, C, H, W).
        norm: Batch norm of C channels as for `batch_norm_reference`; None leaves it out.
        weight1: (H, C, 1, 1).
        norm1: Batch norm of H channels.
        weight2: (C, H, 1, 1).
        norm2: Batch norm of C channels.

    Returns:
        (N, C, H, W).
    """
    y = mixed if norm is None else batch_norm_reference(mixed, norm)
    y = F.gelu(batch_norm_reference(pointwise_conv2d_reference(y, weight1), norm1))
    return x + batch_norm_reference(pointwise_conv2d_reference(y, weight2), norm2)


def depthwise_sum_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    norm: BatchNormState | None = None,
    *,
    stride: tuple[int, int] = (1, 1),
    coarse: Tensor | None = None,
    onto: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """``onto + norm(depthwise(x + up(coarse)))``, what is None left out.

    Args:
        x: (N, C, H, W).
        weight: (C, 1, kh, kw), sides odd.
        bias: (C,).
        norm: Batch norm as for `batch_norm_reference`.
        stride: Step in rows and columns.
        coarse: (N, C, h, w), enlarged to (H, W) by the nearest pixel.
        onto: (N, C, ceil(H / sh), ceil(W / sw)).

    Returns:
        (N, C, ceil(H / sh), ceil(W / sw)).
    """
    if coarse is not None:
        x = x + F.interpolate(coarse, size=x.shape[2:], mode='nearest')
    y = depthwise_conv2d_reference(x, weight, bias, stride)
    y = y if norm is None else batch_norm_reference(y, norm)
    return y if onto is None else onto + y


def linear_attention2d_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    norm: BatchNormState | None = None,
    *,
    heads: int,
    epsilon: float = 1e-6,
    backend: str | None = None,
) -> Tensor:
    """Attention without softmax over the pixels of a map, values being the map itself.

    Query and key are ``elu + 1`` of a 1x1 convolution, normed where ``norm`` is given. With l for the
    mean over the pixels, ``o_i = l(q_i . k_j v_j) / (l(q_i . k_j) + epsilon)``: the weights are positive
    and sum to one. Channels are split into heads contiguously.

    Args:
        x: (N, C, H, W).
        weight: (2 Q, C / groups, 1, 1), queries before keys.
        bias: (2 Q,).
        norm: Batch norm as for `batch_norm_reference`.
        heads: Divides C and Q.
        epsilon: Added to the mean of the weights.

    Returns:
        (N, C, H, W).
    """
    scores = pointwise_conv2d_reference(x, weight, bias)
    scores = scores if norm is None else batch_norm_reference(scores, norm)
    return attention2d(x, scores, heads, epsilon)


def attention2d(x: Tensor, scores: Tensor, heads: int, epsilon: float) -> Tensor:
    """The attention of `linear_attention2d_reference` from raw queries and keys on.

    Args:
        x: (N, C, H, W), the values.
        scores: (N, 2 Q, H, W).
        heads: Divides C and Q.
        epsilon: Added to the mean of the weights.

    Returns:
        (N, C, H, W) in the layout of ``x``.
    """
    query, key = (F.elu(scores) + 1).chunk(2, 1)
    query, key, value = (
        each.flatten(2).unflatten(1, (heads, -1)).transpose(2, 3) for each in (query, key, x)
    )
    out = _attention(query, key, value, epsilon)
    if channels_last(x):
        return out.transpose(1, 2).reshape(x.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)
    return out.transpose(2, 3).reshape(x.shape)


def _attention(query: Tensor, key: Tensor, value: Tensor, epsilon: float) -> Tensor:
    """(..., L, d), (..., L, d) and (..., L, e) to (..., L, e), in the cheaper order of products.

    ``q (k^T v)`` costs a d x e matrix per head, ``(q k^T) v`` an L x L one.
    """
    length, width, depth = query.shape[-2], query.shape[-1], value.shape[-1]
    scale = length**-0.5
    if length * (width + depth) < 2 * width * depth:
        weights = (query * scale) @ (key * scale).transpose(-1, -2)
        return (weights @ value) / (weights.sum(-1, keepdim=True) + epsilon)
    total = query @ key.mean(-2, keepdim=True).transpose(-1, -2)
    summary = (key * scale).transpose(-1, -2) @ (value * scale)
    return (query @ summary) / (total + epsilon)


def contiguous_map_reference(
    x: Tensor,
    memory_format: torch.memory_format = torch.contiguous_format,
    *,
    backend: str | None = None,
) -> Tensor:
    """``x`` in a memory layout.

    Args:
        x: (N, C, H, W).
        memory_format: ``torch.contiguous_format`` or ``torch.channels_last``.

    Returns:
        (N, C, H, W).
    """
    return x.contiguous(memory_format=memory_format)


def layer_norm_reference(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    backend: str | None = None,
) -> Tensor:
    """Layer norm over the last axis, with biased variance.

    Args:
        x: (..., C).
        weight: (C,).
        bias: (C,).
        eps: Added to the variance.

    Returns:
        (..., C).
    """
    return F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def patch_conv2d_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, backend: str | None = None
) -> Tensor:
    """Convolution whose stride is its kernel size, without padding.

    Args:
        x: (N, C, H, W).
        weight: (O, C, k, l).
        bias: (O,).

    Returns:
        (N, O, H // k, W // l).
    """
    return F.conv2d(x, weight, bias, (weight.shape[2], weight.shape[3]))


def inception_dwconv2d_reference(
    x: Tensor,
    weight_hw: Tensor,
    bias_hw: Tensor | None,
    weight_w: Tensor,
    bias_w: Tensor | None,
    weight_h: Tensor,
    bias_h: Tensor | None,
    *,
    backend: str | None = None,
) -> Tensor:
    """Identity, square, horizontal and vertical depthwise branches on a split of the channels.

    The channels are split in the order identity (C - 3g), square (g), horizontal band (g), vertical
    band (g) and come out in the same order. This is the order of the authors' code; the formula
    printed in the paper has the identity last. Neither bias nor kernel touches the identity part,
    which may be empty.

    Args:
        x: (N, C, H, W) with C >= 3g.
        weight_hw: (g, 1, k, k).
        bias_hw: (g,).
        weight_w: (g, 1, 1, b), along the width.
        bias_w: (g,).
        weight_h: (g, 1, b, 1), along the height.
        bias_h: (g,).

    Returns:
        (N, C, H, W).
    """
    g = weight_hw.shape[0]
    identity, square, wide, tall = torch.split(x, [x.shape[1] - 3 * g, g, g, g], dim=1)
    return torch.cat(
        (
            identity,
            depthwise_conv2d_reference(square, weight_hw, bias_hw),
            depthwise_conv2d_reference(wide, weight_w, bias_w),
            depthwise_conv2d_reference(tall, weight_h, bias_h),
        ),
        dim=1,
    )


def large_kernel_branches_reference(
    x: Tensor, weights: Sequence[Tensor], *, backend: str | None = None
) -> tuple[Tensor, ...]:
    """`depthwise_conv2d_reference` of one map with each of several kernels (C, 1, kh, kw)."""
    return tuple(depthwise_conv2d_reference(x, weight) for weight in weights)


def large_kernel_sum_reference(
    x: Tensor, weights: Sequence[Tensor], bias: Tensor | None = None, *, backend: str | None = None
) -> Tensor:
    """The sum of `depthwise_conv2d_reference` over several kernels; ``bias`` (C,) is added once."""
    first, *others = weights
    y = depthwise_conv2d_reference(x, first, bias)
    for weight in others:
        y = y + depthwise_conv2d_reference(x, weight)
    return y


def large_kernel_normed_reference(
    x: Tensor,
    weights: Sequence[Tensor],
    norms: Sequence[BatchNormState],
    *,
    backend: str | None = None,
) -> Tensor:
    """The sum over several kernels of a batch norm of `depthwise_conv2d_reference` each.

    Args:
        x: (N, C, H, W).
        weights: Kernels (C, 1, kh, kw).
        norms: A `mmlk.ops.states.BatchNormState` for each; running statistics are updated.

    Returns:
        (N, C, H, W).
    """
    first, *others = (
        batch_norm_reference(depthwise_conv2d_reference(x, weight), norm)
        for weight, norm in zip(weights, norms)
    )
    return sum(others, first)


def batch_norm_reference(x: Tensor, norm: BatchNormState, *, backend: str | None = None) -> Tensor:
    """Batch norm with the statistics of ``x`` (N, C, H, W), recorded in ``norm``."""
    return F.batch_norm(
        x,
        norm.running_mean,
        norm.running_var,
        norm.weight.contiguous(),  # of channels-last maps torch reads a strided one as dense
        norm.bias.contiguous(),
        True,
        norm.record(),
        norm.eps,
    )


def dcls_kernel1d_reference(
    weight: Tensor,
    positions: Tensor,
    sigma: Tensor | None = None,
    *,
    kernel_size: int | Sequence[int],
    version: str = 'v0',
    backend: str | None = None,
) -> Tensor:
    """`dcls_kernel2d_reference` for one axis: (O, I, k) from positions (1, O, I, m)."""
    return _dcls_kernel(weight, positions, sigma, kernel_size, version)


def dcls_kernel2d_reference(
    weight: Tensor,
    positions: Tensor,
    sigma: Tensor | None = None,
    *,
    kernel_size: int | Sequence[int],
    version: str = 'v0',
    backend: str | None = None,
) -> Tensor:
    """Elements of given weights at real-valued positions, spread over the cells of a window.

    ``kernel[o, i, a, b] = sum over elements e of weight[o, i, e] * X_e[a, b]``. An element at
    ``p = position + k // 2`` on each axis, counted in cells, has the product of one profile per axis:

    * ``v0``: ``1 - r`` in cell ``floor(p)`` and ``r`` in the next, ``r`` being the fraction of ``p``;
    * ``v1``: ``relu(1 - |g - p|)`` in cell ``g``;
    * ``max``: ``relu(s - |g - p|)``, with ``s = |sigma| + 1``;
    * ``gauss``: ``exp(-((g - p) / s) ** 2 / 2)``, with ``s = |sigma| + 0.27``.

    ``X_e`` is that product for ``v0``, of which cells outside the window are lost. For the others
    it is divided by its sum over the window plus 1e-7. Component 0 of positions and sigma drives
    rows for ``v0`` and columns for the others; in three dimensions the components drive the first,
    last and middle axis for ``v0`` and the last, middle and first axis for the others.

    The offset ``k // 2`` and the window are those of the axis that a component drives. The authors'
    code takes the component's own index, which differs for windows with unequal sides only and
    moves the elements off centre there.

    Args:
        weight: (O, I, m).
        positions: (2, O, I, m).
        sigma: (2, O, I, m), for ``max`` and ``gauss``.
        kernel_size: Window (kh, kw), or one number for both.
        version: As above.

    Returns:
        (O, I, kh, kw), in float32 or float64.
    """
    return _dcls_kernel(weight, positions, sigma, kernel_size, version)


def dcls_kernel3d_reference(
    weight: Tensor,
    positions: Tensor,
    sigma: Tensor | None = None,
    *,
    kernel_size: int | Sequence[int],
    version: str = 'v0',
    backend: str | None = None,
) -> Tensor:
    """`dcls_kernel2d_reference` for three axes: (O, I, kd, kh, kw), positions (3, O, I, m)."""
    return _dcls_kernel(weight, positions, sigma, kernel_size, version)


def _dcls_kernel(
    weight: Tensor,
    positions: Tensor,
    sigma: Tensor | None,
    kernel_size: int | Sequence[int],
    version: str,
) -> Tensor:
    dims = positions.shape[0]
    sizes = (kernel_size,) * dims if isinstance(kernel_size, int) else tuple(kernel_size)
    dtype = torch.promote_types(torch.promote_types(weight.dtype, positions.dtype), torch.float32)
    component = range(dims)[::-1] if version != 'v0' else (0, 2, 1) if dims == 3 else range(dims)
    spread = weight.new_ones((), dtype=dtype)
    for axis, size in enumerate(sizes):
        p = positions[component[axis]].to(dtype)[..., None] + size // 2
        s = None if sigma is None else sigma[component[axis]].to(dtype)[..., None].abs()
        profile = _dcls_profile(torch.arange(size, dtype=dtype, device=p.device), p, s, version)
        shape = (*profile.shape[:3], *(size if other == axis else 1 for other in range(dims)))
        spread = spread * profile.reshape(shape)
    if version != 'v0':
        spread = spread / (spread.flatten(3).sum(3).reshape(*spread.shape[:3], *(1,) * dims) + 1e-7)
    return (weight.to(dtype).reshape(*weight.shape, *(1,) * dims) * spread).sum(2)


def _dcls_profile(cells: Tensor, p: Tensor, s: Tensor | None, version: str) -> Tensor:
    if version == 'v0':
        lower = p.detach().floor()
        r = p - lower
        return (1 - r) * (cells == lower) + r * (cells == lower + 1)
    if s is None:  # v1
        return torch.relu(1.0 - (cells - p).abs())
    if version == 'gauss':
        return torch.exp(-0.5 * ((cells - p) / (s + 0.27)) ** 2)
    return torch.relu(s + 1.0 - (cells - p).abs())


def recconv2d_reference(
    x: Tensor,
    down_weight: Tensor,
    weights: Sequence[Tensor],
    *,
    mode: str = 'bilinear',
    backend: str | None = None,
) -> Tensor:
    """Recursive depthwise convolution: a pyramid down, one kernel per level, summed on the way up.

    With L = len(weights) - 1 and the maps ``x_0 = x``, ``x_j = down_weight * x_(j-1)`` at stride 2
    (side ``ceil(n / 2)``), the sum starts at the coarsest map with ``z_(L+1) = 0``:
    ``z_j = up(weights[L-j] * (x_j + z_(j+1)))`` to the size of ``x_(j-1)``, for j = L .. 1. The
    result is ``weights[L] * (x_0 + z_1)``. All convolutions are depthwise and zero padded by
    ``k // 2``; there is no norm and no activation in between.

    Bilinear ``up`` reads at ``max((d + 0.5) * in / out - 0.5, 0)`` for output index d, with the true
    ratio of the two sizes: an odd side (4 -> 7) has weights that vary along the axis, unlike the
    0.25 / 0.75 of an even one. Nearest reads at ``floor(d * in / out)``, which is ``d // 2``.

    Args:
        x: (N, C, H, W), any H and W from 1.
        down_weight: (C, 1, k, k), the same kernel at every level.
        weights: L + 1 kernels (C, 1, k, k) from the coarsest map to the full one.
        mode: 'bilinear' or 'nearest'.

    Returns:
        (N, C, H, W).
    """
    maps = [x]
    for _ in weights[1:]:
        maps.append(depthwise_conv2d_reference(maps[-1], down_weight, stride=2))
    merged = maps.pop()
    for weight, finer in zip(weights, reversed(maps)):
        merged = finer + F.interpolate(
            depthwise_conv2d_reference(merged, weight), size=finer.shape[2:], mode=mode
        )
    return depthwise_conv2d_reference(merged, weights[-1])
