"""What the hand-written autograd nodes for training on a CPU have in common.

Small maps make a layer's own cost, its views and its autograd nodes as expensive as its arithmetic.
Groups of layers that always follow each other are therefore single nodes there, where nothing (a
compiler, an exporter, autocast, a hook, another norm) needs to see the layers one by one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_aten = torch.ops.aten


def unobserved(*modules: nn.Module) -> bool:
    """Whether no hook expects a call of one of the modules."""
    return not any(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
                   or module._backward_pre_hooks for module in modules)


def uses_own_batch(norm: nn.Module) -> bool:
    """Whether ``norm`` is a batch norm in training that uses this process's batch."""
    if type(norm) is nn.SyncBatchNorm:
        distributed = torch.distributed
        if distributed.is_available() and distributed.is_initialized():
            return False
    elif type(norm) is not nn.BatchNorm2d:
        return False
    return (norm.training and norm.affine and norm.momentum is not None
            and norm.running_mean is not None)


def normalise(x: Tensor, norm: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    """Output of ``norm``, batch mean and inverse deviation; running statistics are updated."""
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    return torch.native_batch_norm(x, norm.weight, norm.bias, norm.running_mean, norm.running_var,
                                   True, norm.momentum, norm.eps)


def normalise_gradients(grad: Tensor, x: Tensor, weight: Tensor, mean: Tensor, deviation: Tensor,
                        eps: float, mask: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `normalise` with respect to map, weight and bias, those that ``mask`` asks for."""
    return _aten.native_batch_norm_backward(
        grad, x, weight, None, None, mean, deviation, True, eps, mask)


def rows(x: Tensor) -> Tensor:
    """A channels-last map as (N * H * W, C)."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def as_map(pixels: Tensor, like: Tensor) -> Tensor:
    """(N * H * W, O) as the channels-last map (N, O, H, W), sizes as in ``like``."""
    n, _, h, w = like.shape
    return pixels.view(n, h, w, -1).permute(0, 3, 1, 2)
