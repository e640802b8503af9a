"""Adaptive gradient clipping, which MMEngine's optimizer wrappers do not offer."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from mmengine.hooks import Hook
from torch import Tensor, nn

from mmlk.engine.optimizers import single_wrapper
from mmlk.registry import HOOKS


@HOOKS.register_module()
class AdaptiveClipHook(Hook):
    """Limits the gradient of every unit to a share of the unit's own weights (NFNets, Sec. 4.1).

    A unit is a row of a matrix or an output channel of a kernel; a vector is one unit. The optimizer
    wrapper clips where it clips otherwise: after gradients are accumulated and unscaled.

    Args:
        clip_factor: Largest norm of a gradient relative to the norm of the weights.
        eps: Smallest norm that weights count with.

    Raises:
        ValueError: If a number is not positive.
        RuntimeError: If there are several optimizers, or the wrapper clips in another way already.
    """

    def __init__(self, clip_factor: float = 0.01, eps: float = 1e-3):
        if clip_factor <= 0 or eps <= 0:
            raise ValueError(
                f'AdaptiveClipHook: clip_factor {clip_factor} and eps {eps} must be positive'
            )
        self.clip_factor = clip_factor
        self.eps = eps

    def before_train(self, runner) -> None:
        """Make the optimizer wrapper clip in this way."""
        wrapper = single_wrapper(runner, 'AdaptiveClipHook')
        if wrapper.clip_grad_kwargs:
            raise RuntimeError(
                f'AdaptiveClipHook: optim_wrapper.clip_grad={wrapper.clip_grad_kwargs} clips '
                'already; remove it or the hook'
            )
        wrapper.clip_func = clip_adaptively
        wrapper.clip_grad_kwargs = dict(clip_factor=self.clip_factor, eps=self.eps)


@torch.no_grad()
def clip_adaptively(parameters: Iterable[nn.Parameter], clip_factor: float, eps: float) -> None:
    """Scale down, in place, the gradient of each unit whose norm exceeds its share.

    Args:
        parameters: Parameters; those without a gradient are passed over.
        clip_factor: Share of the weights' norm.
        eps: Smallest norm that weights count with.
    """
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is None:
            continue
        allowed = _unit_norm(parameter).clamp_(min=eps) * clip_factor
        norm = _unit_norm(gradient)
        gradient.mul_(torch.where(norm > allowed, allowed / norm.clamp(min=1e-6), 1.0))


def _unit_norm(x: Tensor) -> Tensor:
    """Norm over everything but the first axis; of a vector as a whole."""
    if x.ndim <= 1:
        return torch.linalg.vector_norm(x)
    return torch.linalg.vector_norm(x, dim=tuple(range(1, x.ndim)), keepdim=True)
