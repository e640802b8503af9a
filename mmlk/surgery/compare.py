"""Two runs of a network on one sample."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Largest error over the standard deviation that an output of a dtype may have."""


def outputs(model: nn.Module, sample: Any) -> list[Tensor]:
    """Copies of the floating tensors that a network in eval mode returns, in their order.

    Args:
        model: The network; its modes and the random generators are as before afterwards.
        sample: A tensor, a tuple of positional arguments or a mapping of named ones.
    """
    devices = {each.device for each in model.parameters() if each.is_cuda}
    with _evaluating(model), torch.random.fork_rng(list(devices)), torch.no_grad():
        torch.manual_seed(0)  # for networks that draw numbers in eval mode, too
        if isinstance(sample, Mapping):
            found = model(**sample)
        else:
            found = model(*(sample if isinstance(sample, tuple) else (sample,)))
        return [each.detach().clone() for each in _tensors(found)]


def excess(
    got: list[Tensor], want: list[Tensor], tolerance: float | None
) -> tuple[float, str | None]:
    """Largest error over the standard deviation, and what is wrong in words, or None."""
    if [each.shape for each in got] != [each.shape for each in want]:
        return float('inf'), 'returns other shapes'
    worst, wrong = 0.0, None
    for index, (mine, theirs) in enumerate(zip(got, want)):
        if theirs.numel() == 0:
            continue
        bound = TOLERANCE[theirs.dtype] if tolerance is None else tolerance
        error = _error(mine.double(), theirs.double())
        if not error <= bound and wrong is None:
            which = f'output {index}' if len(want) > 1 else 'the output'
            wrong = f'has {which} off by {error:.1e} of its deviation, {bound:.0e} is allowed'
        worst = max(worst, error)
    return worst, wrong


def _error(got: Tensor, want: Tensor) -> float:
    scale = want.std(correction=0)
    scale = scale if scale > 0 else want.abs().max()  # of one number, or a constant
    error = (got - want).abs().max()
    return float(error / scale if scale > 0 else error)


def _tensors(found: Any) -> Iterator[Tensor]:
    if isinstance(found, Tensor):
        if found.is_floating_point():
            yield found
    elif isinstance(found, Mapping):
        for each in found.values():
            yield from _tensors(each)
    elif isinstance(found, list | tuple):
        for each in found:
            yield from _tensors(each)


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode by the attribute alone: ``eval()`` and ``train()`` of networks may do more."""
    modes = [(each, each.training) for each in model.modules()]
    try:
        for each, _ in modes:
            each.training = False
        yield
    finally:
        for each, mode in modes:
            each.training = mode
