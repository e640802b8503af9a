"""Runs with several optimizers: hooks made for one refuse them, the others take them."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.optim import AmpOptimWrapper, OptimWrapper, OptimWrapperDict
from torch import nn

from mmlk import engine
from mmlk.engine import AdaptiveClipHook, DCLSRepulsionHook, FiniteLossHook, SparseMaskHook

FOR_ONE = (AdaptiveClipHook, DCLSRepulsionHook, SparseMaskHook)
# Hooks that never ask for the optimizer, or take any number of them.
FOR_ANY = (
    'DCLSClampHook',
    'FiniteLossHook',
    'PicturesHook',
    'SafeCheckpointHook',
    'SingleImageNormHook',
)


def several(kind=OptimWrapper):
    made = [kind(optimizer=torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)) for _ in range(2)]
    return OptimWrapperDict(first=made[0], second=made[1])


def test_every_hook_is_looked_at():
    known = {*(hook.__name__ for hook in FOR_ONE), *FOR_ANY, 'LayerDecayConstructor'}
    assert set(engine.__all__) == known


@pytest.mark.parametrize('hook', FOR_ONE)
def test_hook_for_one_optimizer_refuses_several_and_names_them(hook):
    runner = SimpleNamespace(optim_wrapper=several(), hooks=[], model=nn.Linear(2, 2))
    message = f'{hook.__name__}: works with a single .* OptimWrapperDict of first, second; train'
    with pytest.raises(RuntimeError, match=message):
        hook().before_train(runner)


def test_overflow_in_mixed_precision_is_a_warning_with_several_optimizers_too(monkeypatch):
    monkeypatch.setattr(
        'mmengine.optim.optimizer.amp_optimizer_wrapper.is_cuda_available', lambda: True
    )
    warned = []
    runner = SimpleNamespace(
        optim_wrapper=several(AmpOptimWrapper),
        model=nn.Linear(2, 2),
        iter=0,
        logger=SimpleNamespace(warning=warned.append),
    )
    hook = FiniteLossHook(1)
    hook._losses = dict(loss=torch.tensor(float('nan')))
    hook._check(runner)
    assert 'the scaler skips such steps' in warned[0]
