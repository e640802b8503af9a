"""What a training needs does not hang on the list of hooks that users overwrite.

Scenarios: every config with ``custom_hooks`` replaced, configs of one's own x families, hooks that
are there, left out, doubled; dense and frozen networks; trainers of other packages.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mmlk.backbones import DCLSConvNeXt
from mmlk.cli.hooks import bring_hooks
from mmlk.engine import SparseMaskHook
from tests.cases import MICRO_ARCHS
from tests.engine.sparse_models import Classifier, sparse_runner, stub_runner

CONFIGS = sorted((Path(__file__).parents[2] / 'configs').glob('*.py'))
NEEDED = {'mmlk.SLaK': 'SparseMaskHook', 'mmlk.DCLSConvNeXt': 'DCLSClampHook'}


def inheriting(tmp_path, base: str, text: str) -> Config:
    path = tmp_path / 'mine.py'
    path.write_text(f"_base_ = 'mmlk::{base}'\n{text}")
    return Config.fromfile(str(path))


def kinds(cfg) -> list[str]:
    hooks = [*cfg.default_hooks.values(), *(cfg.get('custom_hooks') or [])]
    return [hook['type'].rpartition('.')[2] for hook in hooks]


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_every_config_keeps_what_it_needs_when_custom_hooks_are_replaced(tmp_path, path):
    cfg = inheriting(tmp_path, path.name, "custom_hooks = [dict(type='EMAHook')]")
    needed = NEEDED.get(cfg.model.backbone.type)
    assert 'EMAHook' in kinds(cfg) and 'FiniteLossHook' in kinds(cfg)
    assert needed is None or kinds(cfg).count(needed) == 1
    assert bring_hooks(cfg) == []


@pytest.mark.parametrize('kind', ['mmlk.SLaK', 'mmlk.DCLSConvNeXt', 'mmlk.RecNeXt', 'ResNet'])
@pytest.mark.parametrize('nested', [False, True], ids=['plain', 'nested'])
def test_a_config_that_inherits_nothing_gets_what_its_backbone_needs(kind, nested):
    model = dict(backbone=dict(type=kind))
    cfg = Config(dict(model=dict(parts=[model]) if nested else model))
    notes = ' '.join(bring_hooks(cfg))
    assert kinds(cfg) == [*([NEEDED[kind]] if kind in NEEDED else []), 'FiniteLossHook']
    assert 'mmlk.FiniteLossHook added: a loss that is no number ends the run' in notes
    if kind in NEEDED:
        assert f'mmlk.{NEEDED[kind]} added: {kind[5:]} needs it to train rightly' in notes


def test_hooks_of_the_same_type_are_not_doubled():
    cfg = Config(
        dict(
            model=dict(backbone=dict(type='mmlk.SLaK')),
            custom_hooks=[dict(type='mmlk.SparseMaskHook', density=0.5)],
        )
    )
    bring_hooks(cfg)
    assert kinds(cfg).count('SparseMaskHook') == 1
    assert cfg.custom_hooks[0].density == 0.5


def test_a_hook_can_be_left_out_by_name(tmp_path):
    text = 'default_hooks = dict(sparse_mask=None)'
    cfg = inheriting(tmp_path, 'upernet_slak_t_ade20k.py', text)
    assert 'left out, as default_hooks.sparse_mask=None says' in bring_hooks(cfg)[0]
    assert 'sparse_mask' not in cfg.default_hooks  # MMEngine refuses None there


def test_two_mask_hooks_are_refused(tmp_path):
    other = SparseMaskHook(init='uniform', update_interval=2)
    runner, _ = sparse_runner(tmp_path, hooks=[other])
    with pytest.raises(RuntimeError, match=r'there are two of them.*sparse_mask=dict'):
        runner.train()


def test_dense_weights_are_trained_without_masks_where_that_is_allowed(tmp_path):
    def hook():
        return SparseMaskHook(init='from_weights', update_interval=0, allow_dense=True)

    runner, used = sparse_runner(tmp_path, hook=hook(), max_iters=4)
    runner.train()
    assert used.masks == {} and used.step == 0
    resumed, used = sparse_runner(tmp_path, hook=hook(), max_iters=6, resume=True)
    resumed.train()
    assert resumed.iter == 6 and used.masks == {}


def test_frozen_networks_are_trained_without_masks_where_that_is_allowed():
    model = Classifier()
    model.backbone.requires_grad_(False)
    hook = SparseMaskHook(init='from_weights', update_interval=0, allow_dense=True)
    hook.before_train(stub_runner(model))
    assert hook.masks == {}


def test_positions_return_to_the_window_without_any_hook():
    model = DCLSConvNeXt(MICRO_ARCHS['DCLSConvNeXt']).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    positions = [key for key, _ in model.named_parameters() if key.endswith('.P')]
    with torch.no_grad():
        for key in positions:
            model.get_parameter(key).fill_(9.0)
    for _ in range(2):
        sum(y.square().mean() for y in model(torch.randn(1, 3, 64, 64))).backward()
        assert all(model.get_parameter(key).abs().max() <= 4 for key in positions)
        optimizer.step()
    assert len(positions) == 4


def test_evaluation_changes_no_position():
    model = DCLSConvNeXt(MICRO_ARCHS['DCLSConvNeXt']).eval()
    with torch.no_grad():
        model.stages[0][0].dwconv.P.fill_(9.0)
        model(torch.randn(1, 3, 64, 64))
    assert (model.stages[0][0].dwconv.P == 9.0).all()
