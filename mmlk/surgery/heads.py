"""Heads of other packages that can be computed in fewer operations."""

from __future__ import annotations

from torch import nn

from mmlk.surgery.swapped import swap

_PACKAGE = 'mmseg.models.'


def considered_heads(model: nn.Module) -> dict[nn.Module, tuple[str, str | None]]:
    """Heads of MMSegmentation that this package knows how to compute in fewer operations.

    Returns:
        Head -> its name, and the reason why it must be left alone, or None.
    """
    found = {
        each: name
        for name, each in model.named_modules()
        if type(each).__module__.startswith(_PACKAGE)
    }
    if not found:
        return {}
    from mmlk.surgery import segmentors  # needs MMSegmentation, which is there

    return {
        each: (name, segmentors.refusal(each))
        for each, name in found.items()
        if type(each) in segmentors.PARTS
    }


def take_head(head: nn.Module) -> None:
    """Have a head of `considered_heads` that has no reason against it compute in fewer operations.

    Results differ by rounding. While gradients are asked for, in training, and on other devices than a
    CPU, it computes as before.
    """
    from mmlk.surgery import segmentors

    swap(head, segmentors.PARTS[type(head)])
