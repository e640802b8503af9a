"""Weights that were asked for and not loaded, what initialising prints, and what cannot learn.

Scenarios: families x (never initialised, initialised, loaded, no weights), outputs x frozen stages.
"""

from __future__ import annotations

import logging
import warnings

import pytest
import torch
from mmengine.logging import MMLogger

from mmlk.registry import MODELS
from tests.cases import MICRO_ARCHS
from tests.checkpoints.test_wrappings import NAMES, build


@pytest.fixture
def file(tmp_path):
    def save(name):
        torch.save(build(name).state_dict(), tmp_path / 'a.pth')
        return dict(type='Pretrained', checkpoint=str(tmp_path / 'a.pth'))

    return save


def images():
    return torch.randn(1, 3, 64, 64)


def spoken(model) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        model(images())
        model(images())
    return [str(w.message) for w in caught if 'random weights' in str(w.message)]


@pytest.mark.parametrize('name', NAMES)
def test_a_backbone_whose_weights_were_never_loaded_says_so_once(name, file):
    model = build(name, init_cfg=file(name)).eval()
    said = spoken(model)
    assert len(said) == 1
    assert f'{name}: init_cfg names weights, but neither init_weights()' in said[0]


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize(
    'prepare',
    [
        lambda model: model.init_weights(),
        lambda model: model.load_state_dict(build(type(model).__name__, seed=3).state_dict()),
    ],
    ids=['init_weights', 'load_state_dict'],
)
def test_a_backbone_that_was_initialised_is_silent(name, file, prepare):
    model = build(name, init_cfg=file(name)).eval()
    prepare(model)
    assert spoken(model) == [] and not model._forward_pre_hooks


@pytest.mark.parametrize('name', NAMES)
def test_a_backbone_without_weights_to_load_is_silent(name):
    assert spoken(build(name).eval()) == []
    assert spoken(build(name, init_cfg=dict(type='Normal', layer='Linear')).eval()) == []


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('pretrained', [True, False])
def test_initialising_prints_a_summary(name, file, pretrained, caplog):
    model = build(name, init_cfg=file(name) if pretrained else None)
    with caplog.at_level(logging.INFO, logger=MMLogger.get_current_instance().name):
        logger = MMLogger.get_current_instance()
        lines = []
        handler = logging.Handler()
        handler.emit = lambda record: lines.extend(record.getMessage().split('\n'))
        logger.addHandler(handler)
        try:
            model.init_weights()
        finally:
            logger.removeHandler(handler)
    count = len(list(model.parameters()))
    assert count > 20 > len(lines)
    assert any(f'{name}: {count} parameters: ' in line for line in lines)


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('out_indices', [(0,), (0, 1), (0, 1, 2), (1, 3), (0, 1, 2, 3)], ids=str)
@pytest.mark.parametrize('frozen_stages', [-1, 1])
def test_every_parameter_that_learns_gets_a_gradient(name, out_indices, frozen_stages):
    """DDP stops at a parameter that is to learn and gets no gradient."""
    options = dict(out_indices=out_indices, frozen_stages=frozen_stages, output_norm=True)
    model = build(name, **options).train()
    sum(y.square().mean() for y in model(images())).backward()
    for key, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, key


@pytest.mark.parametrize('name', NAMES)
def test_stages_behind_the_last_output_keep_their_keys(name):
    whole = MODELS.build(dict(type=f'mmlk.{name}', arch=MICRO_ARCHS[name], output_norm=False))
    short = MODELS.build(
        dict(type=f'mmlk.{name}', arch=MICRO_ARCHS[name], output_norm=False, out_indices=(0, 1))
    )
    short.load_state_dict(whole.state_dict(), strict=True)
