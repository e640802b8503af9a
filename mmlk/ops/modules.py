"""When an operator may stand for calls of modules.

Hooks, offloading, quantisation, pruning, adapters and parametrisation all change what a call of a module
does. A block of layers is computed as one only where every module in it is what its class says.
"""

from __future__ import annotations

import torch
from torch import nn

from mmlk.ops import compat
from mmlk.ops.states import BatchNormState

# A class made anew around another one, as torch's parametrisation does, comes from elsewhere.
_ORIGINS = ('torch.nn.modules.', 'mmlk.')


def can_stand_for(*modules: nn.Module) -> bool:
    """Whether calling each of the modules does what its class says, and nothing besides."""
    if compat.has_global_hooks():
        return False
    for each in modules:
        state = each.__dict__
        if (
            'forward' in state
            or state['_forward_hooks']
            or state['_forward_pre_hooks']
            or state['_backward_hooks']
            or state['_backward_pre_hooks']
            or not type(each).__module__.startswith(_ORIGINS)
        ):
            return False
    return True


def own_batch(norm: nn.Module) -> BatchNormState | None:
    """What a batch norm in training knows, if it uses this process's batch alone; otherwise None."""
    kind = type(norm)
    if kind is nn.SyncBatchNorm:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return None
    elif kind is not nn.BatchNorm2d:
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
