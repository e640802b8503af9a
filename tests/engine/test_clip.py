"""Adaptive gradient clipping against timm's and a closed form, in every kind of optimizer wrapper."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from torch import nn

from mmlk.engine import AdaptiveClipHook
from mmlk.engine.clip import clip_adaptively
from tests.cases import assert_close


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 4, 5, bias=True)
    )


def with_gradients(scale):
    model = network()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.grad = scale * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.mark.parametrize('scale', [1e-4, 0.02, 1.0, 100.0])
def test_same_gradients_as_timm(scale):
    agc = pytest.importorskip('timm.utils.agc')
    ours, theirs = with_gradients(scale), with_gradients(scale)
    clip_adaptively(ours.parameters(), clip_factor=0.02, eps=1e-3)
    agc.adaptive_clip_grad(theirs.parameters(), clip_factor=0.02, eps=1e-3)
    for (name, got), want in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert_close(name, got.grad, want.grad, 1e-6)


def test_every_unit_is_limited_to_its_share_and_small_ones_stay():
    model = with_gradients(1.0)
    before = {name: p.grad.clone() for name, p in model.named_parameters()}
    clip_adaptively(model.parameters(), clip_factor=0.02, eps=1e-3)
    for name, parameter in model.named_parameters():
        rows = [parameter] if parameter.ndim == 1 else parameter
        gradients = [parameter.grad] if parameter.ndim == 1 else parameter.grad
        olds = [before[name]] if parameter.ndim == 1 else before[name]
        for row, gradient, old in zip(rows, gradients, olds, strict=True):
            allowed = 0.02 * max(row.detach().double().norm().item(), 1e-3)
            want = old.double() * min(1.0, allowed / old.double().norm().item())
            assert_close(name, gradient, want, 1e-5)


def test_parameters_without_a_gradient_are_passed_over():
    model = network()
    clip_adaptively(model.parameters(), clip_factor=0.02, eps=1e-3)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize('counts', [1, 2])
def test_wrapper_clips_the_accumulated_gradient(counts):
    model, reference = network(), network()
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=1.0), accumulative_counts=counts)
    AdaptiveClipHook(clip_factor=0.02).before_train(SimpleNamespace(optim_wrapper=wrapper))
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(5))
    for _ in range(counts):
        with wrapper.optim_context(model):
            loss = model(x).square().sum()
        wrapper.update_params(loss)
        (reference(x).square().sum() / counts).backward()
    clip_adaptively(reference.parameters(), clip_factor=0.02, eps=1e-3)
    with torch.no_grad():
        for (name, got), want in zip(model.named_parameters(), reference.parameters(), strict=True):
            assert_close(name, got, want - want.grad, 1e-5)


def test_mixed_precision_wrapper_takes_the_same_function():
    parameters = network().parameters()
    optimizer = torch.optim.SGD(parameters, lr=1.0)
    if not torch.cuda.is_available():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                'mmengine.optim.optimizer.amp_optimizer_wrapper.is_cuda_available', lambda: True
            )
            wrapper = AmpOptimWrapper(optimizer=optimizer, dtype='bfloat16')
    else:
        wrapper = AmpOptimWrapper(optimizer=optimizer)
    AdaptiveClipHook(clip_factor=0.1, eps=1e-2).before_train(SimpleNamespace(optim_wrapper=wrapper))
    assert wrapper.clip_func is clip_adaptively
    assert wrapper.clip_grad_kwargs == dict(clip_factor=0.1, eps=1e-2)


@pytest.mark.parametrize('options', [dict(clip_factor=0.0), dict(clip_factor=-1), dict(eps=0)])
def test_numbers_that_are_not_positive_are_refused(options):
    with pytest.raises(ValueError, match='must be positive'):
        AdaptiveClipHook(**options)


def test_a_second_way_of_clipping_is_refused():
    optimizer = torch.optim.SGD(network().parameters(), lr=1.0)
    wrapper = OptimWrapper(optimizer, clip_grad=dict(max_norm=1.0))
    with pytest.raises(RuntimeError, match='max_norm.*clips already'):
        AdaptiveClipHook().before_train(SimpleNamespace(optim_wrapper=wrapper))
