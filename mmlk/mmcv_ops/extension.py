"""Stands in for ``mmcv._ext``: suppression of boxes and RoIAlign on torchvision's operators.

The functions have the names, arguments and results of the compiled ones, so that MMCV's own Python
code calls them. Every other name is an operator that raises when it is called.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import torch
import torchvision

from mmlk import compat

_SIXTEEN_BITS = (torch.float16, torch.bfloat16)


def nms(
    boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float, offset: int
) -> torch.Tensor:
    """Indices of the boxes that no higher-scoring kept box overlaps, by descending score.

    Args:
        boxes: (N, 4) corners x1, y1, x2, y2 in pixels.
        scores: (N,).
        iou_threshold: A box is dropped if its IoU with a kept one is greater.
        offset: 1 if x2 and y2 are the last pixels inside a box, 0 if they are its edges.

    Returns:
        (K,) int64.
    """
    boxes = _wide(boxes)
    if offset:
        boxes = torch.cat([boxes[:, :2], boxes[:, 2:] + offset], dim=1)
    # Equal scores come in the order of this sort, as in MMCV; torchvision's own is another.
    order = scores.sort(0, descending=True)[1]
    ranks = torch.arange(len(order), 0, -1, dtype=boxes.dtype, device=boxes.device)
    return order[torchvision.ops.nms(boxes[order], ranks, _float32(iou_threshold))]


def softnms(
    boxes: torch.Tensor,
    scores: torch.Tensor,
    dets: torch.Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> torch.Tensor:
    """Soft suppression (Bodla et al., 2017): overlapping boxes get lower scores and are not dropped.

    The box of the highest score is taken, the scores of those that remain are lowered by their IoU
    with it, and boxes that fall below ``min_score`` leave. A box that leaves is replaced by the last
    one, as in MMCV, because the place decides between equal scores.

    Args:
        boxes: (N, 4) corners in pixels.
        scores: (N,).
        dets: (N, 5); its first K rows receive the corners and lowered scores of the boxes returned.
        iou_threshold: IoU from which methods 0 and 1 lower a score.
        sigma: Width of method 2.
        min_score: Score below which a box leaves.
        method: 0 multiplies by zero, 1 by 1 - IoU, 2 by exp(-IoU^2 / sigma).
        offset: See :func:`nms`.

    Returns:
        (K,) int64, in the order in which the boxes were taken.
    """
    scores = scores.clone()
    corners, sizes = (boxes[:, :2], boxes[:, 2:]), boxes[:, 2:] - boxes[:, :2] + offset
    areas = sizes[:, 0] * sizes[:, 1]
    order = torch.arange(len(boxes), device=boxes.device)
    taken = 0
    while taken < len(order):
        best = taken + _first_highest(scores[order[taken:]])
        order[[taken, best]] = order[[best, taken]]
        box, rest = order[taken], order[taken + 1 :]
        low = torch.maximum(corners[0][box], corners[0][rest])
        high = torch.minimum(corners[1][box], corners[1][rest])
        shared = (high - low + offset).clamp(min=0).prod(dim=1)
        overlap = shared / (areas[box] + areas[rest] - shared)
        if method == 2:
            scores[rest] *= torch.exp(-(overlap * overlap) / sigma)
        else:
            lowered = torch.zeros_like(overlap) if method == 0 else 1 - overlap
            scores[rest] *= torch.where(overlap >= iou_threshold, lowered, 1)
        order = torch.cat([order[: taken + 1], _without(rest, scores[rest] < min_score)])
        taken += 1
    dets[:taken, :4] = boxes[order]
    dets[:taken, 4] = scores[order]
    return order


def _first_highest(scores: torch.Tensor) -> int:
    """Position of the highest score; one that is not a number is passed over, unless it is the first."""
    if scores[0].isnan():
        return 0
    return int(torch.where(scores.isnan(), -torch.inf, scores).argmax())


def _without(order: torch.Tensor, leaving: torch.Tensor) -> torch.Tensor:
    """``order`` without the boxes that leave, each replaced by the last that stays."""
    staying = order[~leaving]
    head, tail = order[: len(staying)], order[len(staying) :]
    head = head.clone()
    head[leaving[: len(head)]] = tail[~leaving[len(head) :]].flip(0)
    return head


def roi_align_forward(
    input: torch.Tensor,
    rois: torch.Tensor,
    output: torch.Tensor,
    argmax_y: torch.Tensor,
    argmax_x: torch.Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Average of bilinear samples in each bin of each region (He et al., 2017).

    Values of 16 bits are computed in float32.

    Args:
        input: (N, C, H, W), in any memory format.
        rois: (K, 5): index of the image, then corners in pixels of the image.
        output: (K, C, aligned_height, aligned_width), receives the result.
        argmax_y: Unused, as ``argmax_x``: places of the maxima that ``pool_mode`` 0 would record.
        argmax_x: Unused.
        aligned_height: Bins down.
        aligned_width: Bins across.
        spatial_scale: Pixels of the map per pixel of the image.
        sampling_ratio: Samples per bin and axis; 0 takes as many as the bin has pixels, rounded up.
        pool_mode: 1 averages.
        aligned: Whether the centre of the first pixel lies at 0.5 and not at 0.

    Raises:
        RuntimeError: If ``pool_mode`` is 0 (maxima), which torchvision does not have, or if, with
            ``aligned``, a region on the CPU has a negative size.
    """
    if pool_mode != 1:
        raise _not_here('roi_align_forward with pool_mode="max"')
    scale = _float32(spatial_scale)
    if aligned and not rois.is_cuda:
        _check_sizes(rois, scale)
    pooled = torchvision.ops.roi_align(
        _wide(input), _wide(rois), (aligned_height, aligned_width), scale, sampling_ratio, aligned
    )
    output.copy_(pooled)


def roi_align_backward(
    grad_output: torch.Tensor,
    rois: torch.Tensor,
    argmax_y: torch.Tensor,
    argmax_x: torch.Tensor,
    grad_input: torch.Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Add the gradient of :func:`roi_align_forward`'s input to ``grad_input`` (N, C, H, W)."""
    if pool_mode != 1:
        raise _not_here('roi_align_backward with pool_mode="max"')
    gradient = compat.roi_align_gradient(
        _wide(grad_output),
        _wide(rois),
        _float32(spatial_scale),
        aligned_height,
        aligned_width,
        *grad_input.shape,
        sampling_ratio,
        aligned,
    )
    grad_input += gradient


def get_compiler_version() -> str:
    """What MMCV reports as the compiler of its operators."""
    return "none: torchvision's NMS and RoIAlign, supplied by mmlk"


def get_compiling_cuda_version() -> str:
    """What MMCV reports as the CUDA version that its operators were compiled with."""
    return 'none'


def __getattr__(name: str) -> Callable:
    """An operator that is not supplied: it exists, since MMCV looks for all of them at import."""
    if name.startswith('_'):
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')

    def refuse(*args, **kwargs):
        raise _not_here(name)

    return refuse


def _not_here(operator: str) -> RuntimeError:
    return RuntimeError(
        f'mmcv.ops: {operator} is not available, because this mmcv has no compiled operators and '
        'mmlk supplies NMS, soft-NMS and RoIAlign (average) alone. Install a build that has it: '
        f'"{compat.COMPILE_OPERATORS}" compiles that of onedl-mmcv, '
        '"mim install mmcv" brings that of mmcv'
    )


def _float32(value: float) -> float:
    """``value`` as the compiled operators receive it: thresholds and scales are float32 there."""
    return struct.unpack('f', struct.pack('f', value))[0]


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.dtype in _SIXTEEN_BITS else tensor


def _check_sizes(rois: torch.Tensor, scale: float) -> None:
    corners = rois[:, 1:] * scale - 0.5
    negative = ~(corners[:, 2:] - corners[:, :2] >= 0).all(dim=1)
    if negative.any():
        raise RuntimeError(
            f'roi_align_forward: region {int(negative.nonzero()[0])} of {len(rois)} is '
            f'{rois[negative][0].tolist()} (image, x1, y1, x2, y2), which has a negative size'
        )
