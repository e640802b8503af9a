"""Folded copies of whole models, for prediction and evaluation."""

from __future__ import annotations

import copy

from torch import nn

from mmlk.heads import Head
from mmlk.networks.base import Network
from mmlk.ops.modules import is_changed
from mmlk.surgery.heads import considered_heads, take_head


def folded_copy(model: nn.Module) -> tuple[nn.Module, str]:
    """A copy of ``model`` for inference, in which the parts of this package are folded.

    The copy computes what the model computes in eval mode, up to rounding, with fewer operations. Heads
    of MMSegmentation behind such a part are accelerated as `mmlk.accelerate` does it. The model itself
    stays as it is, for training and for checkpoints.

    Args:
        model: Any model that holds backbones or heads of this package.

    Returns:
        The copy in eval mode, or the model itself; and why nothing was folded, '' where it was.
    """
    parts = [name for name, part in model.named_modules() if _folds(part)]
    if not parts:
        return model, 'no part of it folds'
    changed = [
        f'{name}.{inner}'
        for name in parts
        for inner, module in model.get_submodule(name).named_modules()
        if is_changed(module)
    ]
    if changed:
        return model, f'hooks watch {changed[0]}, or its forward has been replaced'
    result = copy.deepcopy(model).eval()
    try:
        for name in parts:
            result.get_submodule(name).switch_to_deploy()
    except ValueError as error:  # a norm without statistics of its own
        return model, str(error)
    for head, (_, refusal) in considered_heads(result).items():
        if refusal is None:
            take_head(head)
    return result, ''


def _folds(part: nn.Module) -> bool:
    return isinstance(part, (Network, Head)) and not part.deployed
