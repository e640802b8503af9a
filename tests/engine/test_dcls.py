"""Hooks for learnable spacings, optimizer groups of the authors, and positions through real runs."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.hooks import EMAHook
from mmengine.logging import MessageHub
from mmengine.optim import OptimWrapper, build_optim_wrapper
from torch import nn

from mmlk.backbones import DCLSConvNeXt
from mmlk.engine import DCLSClampHook, DCLSRepulsionHook
from mmlk.ops import repulsive_loss
from tests.cases import TOLERANCE, assert_close
from tests.engine.dcls_distributed import DEATH
from tests.engine.dcls_models import LIMIT, Classifier, make_runner, positions
from tests.golden_weights import load_golden

ROOT = Path(__file__).parents[2]
GROUPS = load_golden('dcls_convnext/optimizer-groups')['cases']
CLAMP = dict(type='mmlk.DCLSClampHook')


@pytest.fixture(autouse=True)
def _one_thread():
    """The networks here are too small to share out."""
    torch.set_num_threads(1)


class Segmentor(nn.Module):
    def __init__(self, depths):
        super().__init__()
        self.backbone = DCLSConvNeXt(
            dict(depths=depths, dims=(8, 8, 8, 8), kernel_count=2, kernel_size=3)
        )
        self.decode_head = nn.Conv2d(8, 8, 1)


@pytest.mark.parametrize('case', GROUPS, ids=lambda case: f'{case["task"]}-{case["variant"]}')
def test_rates_and_decays_are_the_authors(case):
    classifier = 'ImageNet' in case['task']
    depths = (3, 3, 9 if case['variant'] == 'tiny' else 27, 3)
    with torch.device('meta'):
        model = Segmentor(depths)
    # The classifier's factor of five reaches positions only in the group of that exact name.
    groups = {
        name: (
            group['lr_scale'] * (5 if group['group_name'] == 'no_decay_dcls' else 1),
            group['weight_decay'],
        )
        for group in case['groups']
        for name in group['names']
    }
    prefix = '' if classifier else 'backbone.'
    paramwise = case.get('paramwise_cfg') or dict(
        decay_rate=case['layer_decay'],
        decay_type='layer_wise',
        num_layers=12,
        lr_multipliers={'.P': 5.0 if case['layer_decay'] == 1 else 1.0},
    )
    optimizer = build_optim_wrapper(
        model,
        dict(
            type='OptimWrapper',
            constructor='mmlk.LayerDecayConstructor',
            paramwise_cfg=paramwise,
            optimizer=dict(type='AdamW', lr=1.0, weight_decay=0.05),
        ),
    ).optimizer
    settings = {id(p): group for group in optimizer.param_groups for p in group['params']}
    trunk = [
        (name, p)
        for name, p in model.backbone.named_parameters()
        if not (classifier and name.startswith('norm'))
    ]
    for name, parameter in trunk:
        scale, decay = groups.pop(prefix + name)
        assert settings[id(parameter)]['lr'] == pytest.approx(scale, rel=1e-9), name
        assert settings[id(parameter)]['weight_decay'] == decay, name
    assert all('head' in name or (classifier and name.startswith('norm')) for name in groups)


def fake_runner(model, wrapper, iteration=0, epoch=0):
    return SimpleNamespace(
        model=model,
        optim_wrapper=wrapper,
        iter=iteration,
        epoch=epoch,
        message_hub=MessageHub.get_instance('dcls'),
    )


def wrapper_of(model, **options):
    return OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1), **options)


@pytest.mark.parametrize('accumulative_counts', [1, 2])
def test_repulsion_adds_the_gradient_of_the_squared_overlap(accumulative_counts):
    model = Classifier()
    runner = fake_runner(model, wrapper_of(model, accumulative_counts=accumulative_counts))
    hook = DCLSRepulsionHook(weight=0.5, begin=0)
    hook.before_train(runner)
    shared = list(positions(model).values())
    want = torch.autograd.grad(
        0.5 * torch.stack([repulsive_loss(p) for p in shared]).mean() ** 2, shared
    )
    shared[0].grad = torch.ones_like(shared[0])
    hook.before_train_iter(runner, 0)
    assert_close(
        'first', shared[0].grad, 1 + want[0] / accumulative_counts, TOLERANCE[torch.float32][1]
    )
    for got, expected in zip(shared[1:], want[1:], strict=True):
        assert_close('grad', got.grad, expected / accumulative_counts, TOLERANCE[torch.float32][1])


def test_repulsion_is_logged_before_it_takes_part():
    model = Classifier()
    hook = DCLSRepulsionHook(begin=3, by_epoch=True)
    runner = fake_runner(model, wrapper_of(model), epoch=2)
    hook.before_train(runner)
    hook.before_train_iter(runner, 0)
    assert all(p.grad is None for p in model.parameters())
    assert runner.message_hub.get_scalar('train/loss_repulsion').current() > 0
    runner.epoch = 3
    hook.before_train_iter(runner, 0)
    assert all(p.grad is not None for p in positions(model).values())


def test_repulsion_leaves_frozen_positions_alone_and_follows_the_loss_scale():
    model = Classifier()
    model.backbone.stages[0].requires_grad_(False)
    wrapper = wrapper_of(model)
    wrapper.loss_scaler = SimpleNamespace(scale=lambda loss: loss * 8)
    plain, scaled = (fake_runner(model, each) for each in (wrapper_of(model), wrapper))
    hook = DCLSRepulsionHook(begin=0)
    grads = []
    for runner in (plain, scaled):
        model.zero_grad()
        hook.before_train(runner)
        hook.before_train_iter(runner, 0)
        assert model.backbone.stages[0][0].dwconv.P.grad is None
        grads.append(model.backbone.stages[1][0].dwconv.P.grad)
    assert_close('scaled', grads[1], 8 * grads[0], TOLERANCE[torch.float32][1])


@pytest.mark.parametrize('hook', [DCLSClampHook, DCLSRepulsionHook])
def test_hooks_refuse_a_model_without_positions(hook):
    model = nn.Linear(2, 2)
    with pytest.raises(RuntimeError, match=f'{hook.__name__}: the model has no layer'):
        hook().before_train(fake_runner(model, wrapper_of(model)))


@pytest.mark.parametrize('options', [dict(weight=-1), dict(begin=-1)])
def test_negative_options_are_refused(options):
    with pytest.raises(ValueError, match='DCLSRepulsionHook: .*-1'):
        DCLSRepulsionHook(**options)


@pytest.mark.parametrize('average', [False, True], ids=['plain', 'ema'])
def test_positions_move_and_stay_in_the_window(tmp_path, average):
    runner = make_runner(tmp_path, hooks=[CLAMP, *([dict(type='EMAHook')] if average else [])])
    before = {name: p.detach().clone() for name, p in positions(runner.model).items()}
    runner.train()
    after = positions(runner.model)
    assert list(after) == list(before) and len(after) == 4
    for name, value in after.items():
        assert not torch.equal(value, before[name]), name
        assert value.abs().max() <= LIMIT, name
    assert max(value.abs().max() for value in after.values()) == LIMIT, 'nothing met the border'
    saved = torch.load(tmp_path / 'iter_4.pth', weights_only=False)
    for state in [saved['state_dict'], saved.get('ema_state_dict', {})]:
        copies = [
            value for key, value in state.items() if 'stages.0.' in key and key.endswith('.P')
        ]
        assert all(torch.equal(each, copies[0]) for each in copies)
        assert all(value.abs().max() <= LIMIT for key, value in state.items() if key.endswith('.P'))


def test_without_the_clamp_positions_leave_the_window(tmp_path):
    runner = make_runner(tmp_path)
    runner.train()
    assert max(value.abs().max() for value in positions(runner.model).values()) > LIMIT


@pytest.mark.parametrize('average', [False, True], ids=['plain', 'ema'])
def test_a_resumed_run_continues_where_it_stopped(tmp_path, average):
    hooks = [CLAMP, *([dict(type='EMAHook')] if average else [])]
    straight = make_runner(tmp_path / 'straight', hooks=hooks, iterations=4)
    straight.train()
    stopped = make_runner(tmp_path / 'stopped', hooks=hooks, iterations=2)
    stopped.train()
    resumed = make_runner(tmp_path / 'stopped', hooks=hooks, iterations=4, resume=True)
    resumed.train()
    assert resumed.iter == 4
    averages = [hook.ema_model.module for hook in resumed.hooks if isinstance(hook, EMAHook)]
    assert len(averages) == average
    for model in (resumed.model, *averages):
        backbone = model.backbone
        assert backbone.stages[0][1].dwconv.P is backbone.stages[0][0].dwconv.P
    backbone = resumed.model.backbone
    listed = [id(p) for group in resumed.optim_wrapper.param_groups for p in group['params']]
    assert id(backbone.stages[0][0].dwconv.P) in listed and len(listed) == len(set(listed))
    for name, value in positions(resumed.model).items():
        assert_close(name, value, straight.model.get_parameter(name), TOLERANCE[torch.float32][1])


def distributed(folder, dies_after, average):
    """Exit codes and errors of two processes that train together."""
    environment = {**os.environ, 'PYTHONPATH': str(ROOT), 'CUDA_VISIBLE_DEVICES': ''}
    command = [
        sys.executable,
        '-m',
        'tests.engine.dcls_distributed',
        str(folder / 'work'),
        str(folder / f'rendezvous_{dies_after}'),
    ]
    processes = [
        subprocess.Popen(
            [*command, str(rank), '2', str(dies_after), str(int(average))],
            cwd=ROOT,
            env=environment,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=300)[1] for process in processes]
    return [process.returncode for process in processes], errors


@pytest.mark.slow
@pytest.mark.parametrize('average', [False, True], ids=['plain', 'ema'])
def test_two_killed_processes_resume_and_agree(tmp_path, average):
    codes, errors = distributed(tmp_path, 3, average)
    assert codes == [DEATH, DEATH], errors
    assert not (tmp_path / 'work' / 'iter_4.pth').exists()
    codes, errors = distributed(tmp_path, 0, average)
    assert codes == [0, 0], errors
    saved = torch.load(tmp_path / 'work' / 'iter_4.pth', weights_only=False)
    assert saved['meta']['iter'] == 4
