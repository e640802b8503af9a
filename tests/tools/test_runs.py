"""The tools as a user meets them: train, kill, resume, test, two processes against one."""

import json
import os
import subprocess
import sys

import pytest
import torch

from tests.tools.workbench import ROOT, call_tool, environment, run_tool, scalars, write_config

HOOKS = "dict(imports=['tests.tools.hooks'])"


NO_VALIDATION = dict(val_cfg='None', val_dataloader='None', val_evaluator='None')


def state(path):
    return torch.load(path, weights_only=False)


def largest_difference(path, other):
    """Over all weights and buffers of two checkpoints."""
    ours, theirs = state(path)['state_dict'], state(other)['state_dict']
    assert ours.keys() == theirs.keys()
    return max((ours[key].double() - theirs[key].double()).abs().max().item() for key in ours)


@pytest.fixture
def call(monkeypatch, tmp_path, one_thread):
    return lambda tool, *args: call_tool(tool, *args, monkeypatch=monkeypatch, cwd=tmp_path)


def test_missing_data_stops_before_anything_is_built(tmp_path):
    done = run_tool(
        'train.py',
        'mmlk::upernet_inceptionnext_b_ade20k.py',
        '--cfg-options',
        f'data_root={tmp_path}/absent',
        cwd=tmp_path,
    )
    assert done.returncode == 1
    assert done.stdout.startswith('train.py: error:')
    assert f'{tmp_path}/absent' in done.stdout
    assert 'annotations/training' in done.stdout
    assert 'ADEChallengeData2016.zip' in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    'tool, args, hint',
    [
        ('train.py', ['absent.py'], 'no config file'),
        ('train.py', ['tiny.py', '--cfg-options', 'optim_wraper.optimizer.lr=1'], 'optim_wrapper'),
        ('train.py', ['tiny.py', '--cfg-options', 'model.type=EncoderDecodr'], 'EncoderDecoder'),
        ('train.py', ['tiny.py', '--cfg-options', 'data_root=absent'], 'no folder'),
        ('train.py', ['tiny.py', '--resume', 'absent.pth'], 'does not exist'),
        ('test.py', ['tiny.py', 'absent.pth'], 'does not exist'),
        ('test.py', ['tiny.py', 'absent.pth', '--cfg-options', 'x=1'], 'unknown key'),
    ],
)
def test_bad_input_is_one_message_and_no_run(call, config, tmp_path, tool, args, hint):
    with pytest.raises(SystemExit, match=f'{tool}: error: .*{hint}'):
        call(tool, *args)
    assert not (tmp_path / 'work_dirs').exists()


def test_both_spellings_of_local_rank_and_resume_are_accepted(call, config):
    for words in (['--local_rank=0'], ['--local-rank', '0'], ['--resume', 'auto'], ['--resume']):
        with pytest.raises(SystemExit, match='no config file'):
            call('train.py', 'absent.py', *words)


@pytest.mark.slow
@pytest.mark.parametrize('while_saving, resumed_from', [(False, 4), (True, 2)])
def test_killed_run_resumes_where_its_last_whole_checkpoint_was(
    call, data_root, tmp_path, while_saving, resumed_from
):
    kill = (
        f"[dict(type='KillHook', after={5 - while_saving}, while_saving={while_saving}), "
        f"dict(type='EMAHook')]"
    )
    write_config(tmp_path, data_root, custom_imports=HOOKS, custom_hooks=kill, **NO_VALIDATION)
    killed = run_tool(
        'train.py',
        'tiny.py',
        '--work-dir',
        'killed',
        '--cfg-options',
        'train_cfg.max_iters=6',
        cwd=tmp_path,
    )
    assert killed.returncode == -9, killed.stdout
    assert (tmp_path / 'killed/last_checkpoint').read_text().endswith(f'iter_{resumed_from}.pth')

    write_config(tmp_path, data_root, custom_hooks="[dict(type='EMAHook')]", **NO_VALIDATION)
    options = ['--cfg-options', 'train_cfg.max_iters=6']
    call('train.py', 'tiny.py', '--work-dir', 'killed', '--resume', *options)
    call('train.py', 'tiny.py', '--work-dir', 'whole', *options)

    assert largest_difference(tmp_path / 'killed/iter_6.pth', tmp_path / 'whole/iter_6.pth') < 1e-6
    resumed, whole = state(tmp_path / 'killed/iter_6.pth'), state(tmp_path / 'whole/iter_6.pth')
    assert resumed['param_schedulers'] == whole['param_schedulers']
    assert resumed['meta']['iter'] == 6
    assert {entry['step'].item() for entry in resumed['optimizer']['state'].values()} == {6.0}
    assert scalars(tmp_path / 'killed', 'step')[-1] == 6
    assert scalars(tmp_path / 'killed', 'lr')[-1] == scalars(tmp_path / 'whole', 'lr')[-1]
    assert sorted(path.name for path in (tmp_path / 'killed').glob('*.pth*')) == [
        'iter_4.pth',
        'iter_6.pth',
    ]


@pytest.mark.slow
def test_train_then_evaluate_with_everything(call, data_root, tmp_path, capsys):
    write_config(tmp_path, data_root)
    call(
        'train.py',
        'tiny.py',
        '--accumulate',
        '2',
        '--cfg-options',
        'train_cfg.max_iters=2',
        'default_hooks.checkpoint.save_best=mIoU',
        'train_cfg.val_interval=1',
    )
    log = next((tmp_path / 'work_dirs/tiny').glob('*/*.log')).read_text()
    assert 'Effective batch size 4 = 1 process(es) x 2 image(s) x 2' in log
    assert '12 samples in' in log
    assert len(list((tmp_path / 'work_dirs/tiny').glob('best_mIoU_*.pth'))) == 1

    call(
        'test.py',
        'tiny.py',
        'work_dirs/tiny/last_checkpoint',
        '--tta',
        '--out',
        'labels',
        '--show-dir',
        'pictures',
        '--work-dir',
        'tested',
    )
    assert sorted(path.name for path in (tmp_path / 'labels').iterdir()) == [
        'ADE_validation_00000000.png',
        'ADE_validation_00000001.png',
    ]
    assert len(list((tmp_path / 'pictures').rglob('*.png'))) == 2
    metrics = json.loads(next((tmp_path / 'tested').glob('*/*.json')).read_text())
    assert 0 <= metrics['mIoU'] <= 100


@pytest.mark.slow
def test_two_processes_match_one(call, data_root, tmp_path):
    write_config(
        tmp_path,
        data_root,
        custom_imports=HOOKS,
        custom_hooks="[dict(type='EvalNormsHook'), dict(type='LossFileHook')]",
        **NO_VALIDATION,
    )
    call(
        'train.py', 'tiny.py', '--work-dir', 'one', '--cfg-options', 'train_dataloader.batch_size=4'
    )
    done = subprocess.run(
        ['sh', str(ROOT / 'tools/dist_train.sh'), 'tiny.py', '2', '--work-dir', 'two'],
        cwd=tmp_path,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=300,
        env=environment(PYTHON=sys.executable, PORT=str(20000 + os.getpid() % 20000)),
    )
    assert done.returncode == 0, done.stdout
    assert 'SyncBN has no CPU implementation' in done.stdout
    assert 'Effective batch size 4 = 2 process(es) x 2 image(s) x 1' in done.stdout

    one, first, second = (
        torch.tensor([float(line) for line in (tmp_path / name).read_text().splitlines()])
        for name in ('one/loss_0.txt', 'two/loss_0.txt', 'two/loss_1.txt')
    )
    assert len(one) == 4
    assert not torch.equal(first, second)
    torch.testing.assert_close((first + second) / 2, one, rtol=0, atol=1e-4)
    assert largest_difference(tmp_path / 'one/iter_4.pth', tmp_path / 'two/iter_4.pth') < 1e-4
