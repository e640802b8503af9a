"""Runs of ``tools/train.py`` that are killed, that meet a full disk, that diverge and that hang.

Scenarios: random kills, a full disk, a NaN loss, a hanging process, outputs and stages without a
gradient under DDP.
"""

from __future__ import annotations

import os
import random

import pytest
import torch

from tests.classification import runs
from tests.tools.workbench import call_tool, run_tool, start_two, write_config

HOOKS = "dict(imports=['tests.tools.hooks'])"
NO_VALIDATION = dict(val_cfg='None', val_dataloader='None', val_evaluator='None')
# CI kills a few runs; MMLK_KILLS=12 is the full trial.
KILLS = int(os.environ.get('MMLK_KILLS', '2'))
ITERATIONS = 8 * KILLS + 4  # a run gets less than 9 iterations further before it is killed

pytestmark = pytest.mark.slow


@pytest.fixture
def call(monkeypatch, tmp_path, one_thread):
    return lambda *args: call_tool('train.py', *args, monkeypatch=monkeypatch, cwd=tmp_path)


def write(tmp_path, data_root, hook):
    """The small config with ``hook`` and an average of the weights."""
    hooks = f"[{hook}, dict(type='EMAHook')]"
    return write_config(
        tmp_path, data_root, custom_imports=HOOKS, custom_hooks=hooks, **NO_VALIDATION
    )


def write_classifier(tmp_path, data_root, hook):
    """The small classifier, sparse from scratch, with ``hook`` and an average of the weights."""
    hooks = f'\ncustom_imports = {HOOKS}\ncustom_hooks = [{hook}, *custom_hooks]\n'
    return runs.write_config(tmp_path, more=runs.SPARSE + hooks)


# task -> data, config, setting of the length, and the name of the last checkpoint; a classifier has
# epochs of four iterations
TASKS = {
    'segmentation': ('data_root', write, f'max_iters={ITERATIONS}', f'iter_{ITERATIONS}.pth'),
    'sparse classification': (
        *('pictures', write_classifier, f'max_epochs={ITERATIONS // 4}'),
        f'epoch_{ITERATIONS // 4}.pth',
    ),
}


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    return runs.write_pictures(tmp_path_factory.mktemp('pictures') / 'data')


def weights(path):
    """Weights, their average, and the masks where there are any."""
    content = torch.load(path, weights_only=False)
    masks = content.get('sparse_masks', {}).get('packed', {})
    return {
        **content['state_dict'],
        **content['ema_state_dict'],
        **{f'mask of {name}': mask for name, mask in masks.items()},
    }


def assert_equal_runs(folder, other, last):
    ours, theirs = weights(folder / last), weights(other / last)
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        assert torch.equal(value, theirs[key]), key
    assert names(folder) == names(other)


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.is_file())


@pytest.mark.parametrize('task', TASKS)
def test_a_run_killed_at_random_moments_ends_as_if_it_had_not_been(task, tmp_path, request):
    data, write_task, size, last = TASKS[task]
    never = f'dict(type="TimedKillHook", after={10 * ITERATIONS}, share=0.0)'
    root = request.getfixturevalue(data)
    config = write_task(tmp_path, root, never)

    def train(folder, **kill):
        options = [f'custom_hooks.0.{name}={value}' for name, value in kill.items()]
        run = [config.name, '--work-dir', folder, '--resume', '--cfg-options']
        settings = [f'data_root={root}', f'train_cfg.{size}']
        return run_tool('train.py', *run, *settings, *options, cwd=tmp_path)

    done = train('whole')
    assert done.returncode == 0, done.stdout
    moments = random.Random(int(os.environ.get('MMLK_KILL_SEED', '0')))
    for _ in range(KILLS):
        done = train('killed', after=moments.randint(3, 5), share=moments.uniform(0, 2))
        assert done.returncode == -9, done.stdout
    done = train('killed')
    assert done.returncode == 0, done.stdout
    assert_equal_runs(tmp_path / 'killed', tmp_path / 'whole', last)
    assert any('mask of' in key for key in weights(tmp_path / 'whole' / last)) == ('sparse' in task)


def test_a_run_that_meets_a_full_disk_ends_as_if_it_had_not(call, data_root, tmp_path):
    size = ['--cfg-options', 'train_cfg.max_iters=6']
    write(tmp_path, data_root, "dict(type='FullDiskHook', at=4)")
    done = run_tool('train.py', 'tiny.py', '--work-dir', 'full', *size, cwd=tmp_path)
    assert done.returncode == 1
    assert 'full/iter_4.pth cannot be saved: No space left on device; it needs 0.' in done.stdout
    assert 'MB are free' in done.stdout and '--resume' in done.stdout
    assert [name for name in names(tmp_path / 'full') if 'iter' in name] == ['iter_2.pth']
    write(tmp_path, data_root, "dict(type='IterTimerHook')")
    call('tiny.py', '--work-dir', 'full', '--resume', *size)
    call('tiny.py', '--work-dir', 'whole', *size)
    assert_equal_runs(tmp_path / 'full', tmp_path / 'whole', 'iter_6.pth')


def test_a_run_that_diverges_ends_within_the_logging_interval(call, config, tmp_path):
    with pytest.raises(RuntimeError, match=r'no number at iteration 3 \(.*lr.*clip_grad'):
        call(
            'tiny.py',
            '--cfg-options',
            'optim_wrapper.optimizer.lr=1e30',
            'default_hooks.logger.interval=3',
            'default_hooks.checkpoint.interval=100',
            'train_cfg.max_iters=9',
        )
    log = next((tmp_path / 'work_dirs/tiny').glob('*/*.log')).read_text()
    assert 'Hook mmlk.FiniteLossHook added' in log
    assert not list((tmp_path / 'work_dirs/tiny').glob('*.pth'))


def test_a_run_whose_second_process_hangs_ends_after_the_stated_time(data_root, tmp_path):
    """The hanging process would sleep for an hour, the limit of this test is five minutes."""
    hook = "[dict(type='HangHook', rank=1, at=3)]"
    write_config(tmp_path, data_root, custom_imports=HOOKS, custom_hooks=hook, **NO_VALIDATION)
    done = start_two('tiny.py', '--cfg-options', 'env_cfg.dist_cfg.timeout=15', cwd=tmp_path)
    assert done.returncode == 1, done.stdout
    assert 'Processes wait 15 s for each other at most' in done.stdout
    assert 'imed out waiting' in done.stdout or 'timeout' in done.stdout.lower()


def test_outputs_that_no_head_takes_do_not_stop_two_processes(data_root, tmp_path):
    write_config(tmp_path, data_root, **NO_VALIDATION)
    done = start_two(
        'tiny.py',
        '--cfg-options',
        'model.backbone.out_indices=(0,1,2,3)',
        'model.decode_head.in_index=2',
        'train_cfg.max_iters=3',
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stdout
    assert (
        'No head takes output 0, 1, 3 of the backbone: find_unused_parameters=True' in done.stdout
    )
    assert 'model.backbone.out_indices=(2,)' in done.stdout


def test_stages_behind_the_last_output_do_not_stop_two_processes(data_root, tmp_path):
    write_config(tmp_path, data_root, **NO_VALIDATION)
    options = ['model.backbone.out_indices=(1,)', 'train_cfg.max_iters=3']
    done = start_two('tiny.py', '--cfg-options', *options, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert 'find_unused_parameters=True' not in done.stdout
