"""What the hand-written autograd nodes for training on a CPU have in common.

Small maps make a layer's own cost, its views and its autograd nodes as expensive as its arithmetic.
Groups of layers that always follow each other are therefore single nodes there, where nothing (a
compiler, an exporter, autocast, a hook, another norm) needs to see the layers one by one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlk.ops import jit
from mmlk.ops.jit import batch_norm

_aten = torch.ops.aten


def unobserved(*modules: nn.Module) -> bool:
    """Whether no hook expects a call of one of the modules."""
    return not any(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        for module in modules
    )


def uses_own_batch(norm: nn.Module) -> bool:
    """Whether ``norm`` is a batch norm in training that uses this process's batch."""
    if type(norm) is nn.SyncBatchNorm:
        distributed = torch.distributed
        if distributed.is_available() and distributed.is_initialized():
            return False
    elif type(norm) is not nn.BatchNorm2d:
        return False
    return (
        norm.training
        and norm.affine
        and norm.momentum is not None
        and norm.running_mean is not None
    )


def _compiles(*tensors: Tensor) -> bool:
    return jit.unavailable() is None and batch_norm.takes(*tensors)


def normalise(
    x: Tensor, norm: nn.Module, *, gelu: bool = False, residual: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Output of ``norm``, batch mean and inverse deviation; running statistics are updated.

    Args:
        x: (N, C, H, W), channels-last.
        norm: Batch norm of which `uses_own_batch` holds.
        gelu: Apply GELU to the output.
        residual: (N, C, H, W) to add to the output.
    """
    if norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    parameters = norm.weight, norm.bias, norm.running_mean, norm.running_var
    maps = (x,) if residual is None else (x, residual)
    if _compiles(*maps, *parameters):
        return batch_norm.forward(
            x, *parameters, norm.momentum, norm.eps, gelu=gelu, residual=residual
        )
    y, mean, deviation = torch.native_batch_norm(x, *parameters, True, norm.momentum, norm.eps)
    if gelu:
        y = F.gelu(y)
    return y if residual is None else y.add_(residual), mean, deviation


def normalise_gradients(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    mean: Tensor,
    deviation: Tensor,
    eps: float,
    mask: list[bool],
    *,
    gelu_bias: Tensor | None = None,
    overwrite: bool = False,
) -> tuple[Tensor | None, ...]:
    """Gradients of `normalise` with respect to map, weight and bias, those that ``mask`` asks for.

    Args:
        grad: (N, C, H, W), channels-last.
        x: Input of `normalise`.
        gelu_bias: Bias of the norm if GELU was applied to its output.
        overwrite: Whether ``grad`` may be overwritten.
    """
    if _compiles(grad, x, weight, mean, deviation):
        results = batch_norm.backward(
            grad, x, weight, mean, deviation, gelu_bias=gelu_bias, out=grad if overwrite else None
        )
        return tuple(each if wanted else None for each, wanted in zip(results, mask))
    if gelu_bias is not None:
        scale = deviation * weight
        shift = torch.addcmul(gelu_bias, scale, mean, value=-1)
        normed = torch.addcmul(shift[:, None, None], x, scale[:, None, None])
        grad = _aten.gelu_backward(grad, normed)
    return _aten.native_batch_norm_backward(
        grad, x, weight, None, None, mean, deviation, True, eps, mask
    )


def rows(x: Tensor) -> Tensor:
    """A channels-last map as (N * H * W, C)."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def as_map(pixels: Tensor, like: Tensor) -> Tensor:
    """(N * H * W, O) as the channels-last map (N, O, H, W), sizes as in ``like``."""
    n, _, h, w = like.shape
    return pixels.view(n, h, w, -1).permute(0, 3, 1, 2)
