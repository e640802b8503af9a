"""Which weights a sparse network keeps: densities per layer, pruning, growth (SLaK, Sec. 3.3).

Plain functions on tensors; :mod:`mmlk.engine.sparse` drives them during training. A mask is a
boolean tensor of its parameter's shape, True where the weight is kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch


def cosine_prune_rate(step: int, total: int, initial: float, final: float = 0.005) -> float:
    """Share of kept weights to prune at an optimizer step, falling from ``initial`` to ``final``.

    Args:
        step: Optimizer steps made so far.
        total: Optimizer steps of the whole training.
        initial: Rate before the first step.
        final: Rate at and after the last step.
    """
    progress = min(step / total, 1.0)
    return final + (initial - final) * (1.0 + math.cos(math.pi * progress)) / 2.0


def uniform_densities(shapes: Mapping[str, Sequence[int]], density: float) -> dict[str, float]:
    """The same density for every layer."""
    return dict.fromkeys(shapes, density)


def erk_densities(shapes: Mapping[str, Sequence[int]], density: float) -> dict[str, float]:
    """Erdos-Renyi-Kernel densities (Evci et al., 2020): proportional to sum(shape) / prod(shape).

    Layers that would exceed 1 are dense, and the others share what is left, so that the overall
    density is ``density``.
    """
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    raw = {name: sum(shape) / sizes[name] for name, shape in shapes.items()}
    dense: set[str] = set()
    while True:
        left = density * sum(sizes.values()) - sum(sizes[name] for name in dense)
        weighted = sum(raw[name] * sizes[name] for name in raw if name not in dense)
        scale = left / weighted if weighted else 0.0
        above = {name for name in raw if name not in dense and scale * raw[name] > 1.0}
        if not above:
            return {name: 1.0 if name in dense else scale * raw[name] for name in raw}
        dense |= above


def snip_densities(scores: Mapping[str, torch.Tensor], density: float) -> dict[str, float]:
    """Share of each layer among the globally largest scores.

    Args:
        scores: Connection sensitivities ``|w * dL/dw|`` by name (SNIP, Lee et al., 2019).
        density: Share of all weights to keep.

    Raises:
        ValueError: If the scores are not finite or all zero, so that they order nothing.
    """
    flat = torch.cat([score.flatten().float() for score in scores.values()])
    total = flat.sum()
    if not torch.isfinite(total) or total == 0:
        raise ValueError(
            f'snip_densities: the scores sum to {total.item()}; the loss on the batch '
            "gives no usable gradient, use init='erk' or 'uniform'"
        )
    # Dividing by the sum before comparing is the authors' order of rounding.
    flat = flat / total
    kept = max(int(flat.numel() * density), 1)
    threshold = torch.topk(flat, kept, sorted=True).values[-1]
    return {
        name: 1.0 - (score.float() / total <= threshold).double().mean().item()
        for name, score in scores.items()
    }


def random_mask(shape: Sequence[int], density: float, generator: torch.Generator) -> torch.Tensor:
    """Mask with ``round(density * numel)`` positions drawn without replacement."""
    numel = math.prod(shape)
    mask = torch.zeros(numel, dtype=torch.bool)
    mask[torch.randperm(numel, generator=generator)[: round(density * numel)]] = True
    return mask.reshape(tuple(shape))


def magnitude_prune(weight: torch.Tensor, mask: torch.Tensor, rate: float) -> torch.Tensor:
    """``mask`` without the ``ceil(rate * kept)`` kept positions of smallest magnitude.

    Args:
        weight: Weights, exactly zero outside ``mask``.
        mask: Mask before pruning.
        rate: Share of the kept positions to remove, in [0, 1].
    """
    kept = int(mask.sum())
    removed = mask.numel() - kept + math.ceil(rate * kept)
    order = torch.sort(weight.detach().abs().flatten(), stable=True).indices
    pruned = mask.clone()
    pruned.view(-1)[order[:removed]] = False
    return pruned


def gradient_growth(mask: torch.Tensor, gradient: torch.Tensor, count: int) -> torch.Tensor:
    """``mask`` with the ``count`` positions outside it that have the largest gradients."""
    # Below zero, so that taps which no map reaches, whose gradient is zero, still come before them.
    score = gradient.detach().abs().masked_fill(mask, -1.0)
    order = torch.sort(score.flatten(), descending=True, stable=True).indices
    grown = mask.clone()
    grown.view(-1)[order[:count]] = True
    return grown


def random_growth(mask: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """``mask`` with ``count`` positions outside it added, drawn without replacement.

    The draw is made on the CPU, so that it is the same on every device and rank.
    """
    drawn = torch.rand(mask.shape, generator=generator).flatten()
    drawn[mask.flatten().cpu()] = 2.0
    grown = mask.clone()
    free = mask.numel() - int(mask.sum())
    grown.view(-1)[torch.topk(-drawn, min(count, free)).indices.to(mask.device)] = True
    return grown


def bernoulli_growth(mask: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """``mask`` with each position outside it added with probability ``count / zeros``.

    This is the authors' draw; the number added is ``count`` only on average.
    """
    zeros = mask.numel() - int(mask.sum())
    if count <= 0 or zeros == 0:
        return mask.clone()
    drawn = torch.rand(mask.shape, generator=generator) < count / zeros
    return mask | drawn.to(mask.device)


def average_masked(
    average: torch.Tensor,
    weight: torch.Tensor,
    mask: torch.Tensor,
    grown: torch.Tensor | None = None,
) -> None:
    """Make a running average of a masked weight respect the mask, in place.

    Args:
        average: Average that already includes ``weight``.
        weight: Current weight.
        mask: Current mask; the average becomes zero outside it.
        grown: Positions that have just entered the mask. Their average, so far zero, starts at the
            weight itself.
    """
    average.mul_(mask)
    if grown is not None:
        average[grown] = weight[grown]


def pack_mask(mask: torch.Tensor) -> torch.Tensor:
    """Eight mask positions per byte, first position in the highest bit, as ``numpy.packbits``."""
    flat = mask.detach().cpu().flatten()
    padded = torch.zeros(-(-flat.numel() // 8) * 8, dtype=torch.uint8)
    padded[: flat.numel()] = flat
    powers = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8)
    return (padded.reshape(-1, 8) * powers).sum(1, dtype=torch.uint8)


def unpack_mask(packed: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Inverse of :func:`pack_mask`."""
    powers = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8)
    bits = (packed[:, None] & powers) != 0
    return bits.flatten()[: math.prod(shape)].reshape(tuple(shape))
