"""Copies, averages and functional calls of networks: they compute with their own parameters."""

import copy
import io
from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import EMAHook
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tests.cases import TOLERANCE, assert_close
from tests.networks.families import FAMILIES, build, images

BOUND = 100 * TOLERANCE[torch.float32][0]
pytestmark = [
    pytest.mark.parametrize('family', FAMILIES),
    pytest.mark.parametrize('form', ['training', 'eval', 'folded']),
]


def network(family, form):
    return build(family, form == 'folded').train(form == 'training')


def assert_same(got, want):
    for index, (mine, theirs) in enumerate(zip(got, want, strict=True)):
        assert_close(f'stage {index}', mine, theirs, BOUND)


def reference(model, x, monkeypatch):
    """What a copy computes on the reference backend."""
    with monkeypatch.context() as patch, torch.no_grad():
        patch.setenv('MMLK_BACKEND', 'reference')
        return copy.deepcopy(model)(x)


@torch.no_grad()
def test_copies_compute_the_same_and_stand_alone(family, form):
    model, x = network(family, form), images(family, 'channels_last')
    want = model(x)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    copies = [copy.deepcopy(model), torch.load(buffer, weights_only=False)]
    for parameter in model.parameters():
        parameter.mul_(2)
    for each in copies:
        assert each.training == (form == 'training')
        assert_same(each(x), want)


@torch.no_grad()
def test_functional_call_uses_the_given_parameters(family, form, monkeypatch):
    model, x = network(family, form), images(family, 'channels_last')
    model(x)
    other = copy.deepcopy(model)
    for parameter in other.parameters():
        parameter.mul_(1.1)
    want = reference(other, x, monkeypatch)
    got = torch.func.functional_call(model, dict(other.named_parameters()), (x,))
    assert_same(got, want)


@torch.no_grad()
@pytest.mark.parametrize('options', [{}, dict(multi_avg_fn=get_ema_multi_avg_fn(0.7))])
def test_averages_of_torch(family, form, options, monkeypatch):
    model, x = network(family, form), images(family, 'channels_last')
    average = AveragedModel(model, **options).train(form == 'training')
    average(x)
    for factor in (1.0, 1.2):
        for parameter in model.parameters():
            parameter.mul_(factor)
        average.update_parameters(model)
        want = reference(average, x, monkeypatch)
        assert_same(average(x), want)


@torch.no_grad()
def test_averages_of_mmengine(family, form, monkeypatch):
    """Its hook exchanges the values of network and average through ``.data`` around a validation."""
    model, x = network(family, form), images(family, 'channels_last')
    runner = SimpleNamespace(model=model, iter=0)
    hook = EMAHook(momentum=0.3)
    hook.before_run(runner)
    model(x)
    for factor in (1.1, 1.2):
        for parameter in model.parameters():
            parameter.mul_(factor)
        hook.after_train_iter(runner, 0)
        hook.before_val_epoch(runner)
        assert_same(model(x), reference(model, x, monkeypatch))
        hook.after_val_epoch(runner)
        assert_same(model(x), reference(model, x, monkeypatch))
