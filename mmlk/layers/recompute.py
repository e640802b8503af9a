"""Activation checkpointing that leaves the running statistics of batch norms as they should be."""

from __future__ import annotations

import contextlib

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def recompute(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """``module(x)`` whose activations are computed again in the backward pass instead of stored.

    Outputs, gradients, drawn random numbers and running statistics equal those of a plain call.
    Without a gradient to compute the call is plain.
    """
    if not (torch.is_grad_enabled() and x.requires_grad):
        return module(x)
    return checkpoint(
        module,
        x,
        use_reentrant=False,
        context_fn=lambda: (contextlib.nullcontext(), _statistics_held(module)),
    )


@contextlib.contextmanager
def _statistics_held(module: nn.Module):
    """Second forward of the same batch: batch statistics are used but not recorded again."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
