"""When an operator may stand for calls of modules.

Hooks, offloading, quantisation, pruning, adapters and parametrisation all change what a call of a module
does. A block of layers is computed as one only where every module in it is what its class says.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmlk.ops import compat
from mmlk.ops.states import BatchNormState

# A class made anew around another one, as torch's parametrisation does, comes from elsewhere.
_ORIGINS = ('torch.nn.modules.', 'mmlk.')


class NotScriptable:
    """Mixin, before ``nn.Module``, with which ``torch.jit.script`` refuses a module and says why."""

    def __prepare_scriptable__(self) -> None:
        raise RuntimeError(
            f'torch.jit.script cannot compile {type(self).__name__}: its operators choose their code '
            'at run time; use torch.export.export, or torch.jit.trace for maps of one size'
        )


def can_stand_for(*modules: nn.Module) -> bool:
    """Whether calling each of the modules does what its class says, and nothing besides."""
    if compat.has_global_hooks():
        return False
    for each in modules:
        kind = type(each)
        if is_changed(each) or not (
            kind.__module__.startswith(_ORIGINS) or inherits_batch_norm(kind)
        ):
            return False
    return True


def inherits_batch_norm(kind: type) -> bool:
    """Whether a class computes as torch's batch norms do.

    Where a run of one process has ``SyncBN``, MMEngine puts a class of its own, for maps of any rank.
    """
    return _BatchNorm in kind.__bases__ and kind.forward is _BatchNorm.forward


def is_changed(module: nn.Module) -> bool:
    """Whether hooks watch a module, or its ``forward`` has been replaced."""
    state = module.__dict__
    return bool(
        'forward' in state
        or state['_forward_hooks']
        or state['_forward_pre_hooks']
        or state['_backward_hooks']
        or state['_backward_pre_hooks']
    )


def are_depthwise(*layers: nn.Module, stride: int = 1, kind: type = nn.Conv2d) -> bool:
    """Whether ``layers`` are depthwise convolutions with "same" zero padding, as they were built.

    Networks are changed by attributes too: steps and dilations for larger maps, circular padding.

    Args:
        layers: Any modules.
        stride: The step that they were built with.
        kind: The class that they were built from.
    """
    for each in layers:
        if type(each) is not kind or each.stride != (stride, stride):
            return False
        if not each.groups == each.in_channels == each.out_channels:
            return False
    return pads_evenly(*layers) and can_stand_for(*layers)


def pads_evenly(*convolutions: nn.Conv2d) -> bool:
    """Whether they have no dilation and pad ``k // 2`` zeros on each side, in numbers or as 'same'."""
    for each in convolutions:
        rows, columns = each.kernel_size
        same = each.padding == 'same' and rows % 2 == columns % 2 == 1
        if (
            not (same or each.padding == (rows // 2, columns // 2))
            or each.dilation != (1, 1)
            or each.padding_mode != 'zeros'
        ):
            return False
    return True


def own_batch(norm: nn.Module) -> BatchNormState | None:
    """What a batch norm in training knows, if it uses this process's batch alone; otherwise None."""
    kind = type(norm)
    if kind is nn.SyncBatchNorm:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return None
    elif not inherits_batch_norm(kind):
        return None
    if not norm.training or norm.weight is None or norm.running_mean is None:
        return None
    return BatchNormState(
        norm.weight,
        norm.bias,
        norm.running_mean,
        norm.running_var,
        norm.num_batches_tracked,
        norm.momentum,
        norm.eps,
    )
