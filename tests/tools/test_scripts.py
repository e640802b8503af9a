"""The shell scripts under sh and bash, with the interpreter and srun replaced by echoes."""

import os
import shutil
import subprocess

import pytest

from tests.tools.workbench import ROOT

SHELLS = [
    pytest.param(name, marks=pytest.mark.skipif(not shutil.which(name), reason=f'{name} is absent'))
    for name in ('sh', 'dash', 'bash')
]
WEIRD = ['--cfg-options', 'a.b=[1, 2]', "it's", '*', '--resume']


@pytest.fixture
def echo(tmp_path):
    """A program that prints its arguments one per line, then the variables the scripts set."""
    path = tmp_path / 'echo-arguments'
    path.write_text(
        '#!/bin/sh\nprintf "%s\\n" "$@"\n'
        'echo "PYTHONPATH=$PYTHONPATH"\necho "OMP_NUM_THREADS=${OMP_NUM_THREADS:-}"\n'
    )
    path.chmod(0o755)
    return path


def run(shell, script, *args, **variables):
    kept = {key: os.environ[key] for key in ('PATH', 'HOME') if key in os.environ}
    return subprocess.run(
        [shell, str(ROOT / 'tools' / script), *args],
        env=dict(kept, **variables),
        text=True,
        capture_output=True,
        cwd='/',
    )


def has_in_order(words, text):
    """Whether ``words`` are consecutive lines of ``text``."""
    return '\n'.join(['', *words, '']) in f'\n{text}'


@pytest.mark.parametrize('shell', SHELLS)
def test_dist_train_passes_everything_on(shell, echo):
    out = run(
        shell,
        'dist_train.sh',
        'my config.py',
        '3',
        *WEIRD,
        PYTHON=str(echo),
        NNODES='2',
        NODE_RANK='1',
        MASTER_ADDR='10.0.0.7',
        PORT='12345',
    ).stdout
    assert has_in_order(
        [
            '-m',
            'torch.distributed.run',
            '--nnodes',
            '2',
            '--node_rank',
            '1',
            '--master_addr',
            '10.0.0.7',
            '--master_port',
            '12345',
            '--nproc_per_node',
            '3',
            f'{ROOT}/tools/train.py',
            'my config.py',
            '--launcher',
            'pytorch',
            *WEIRD,
        ],
        out,
    )
    assert f'PYTHONPATH={ROOT}\n' in out


@pytest.mark.parametrize('shell', SHELLS)
def test_dist_test_passes_everything_on(shell, echo):
    out = run(
        shell,
        'dist_test.sh',
        'c.py',
        'my weights.pth',
        '1',
        *WEIRD,
        PYTHON=str(echo),
        PYTHONPATH='/kept',
    ).stdout
    assert has_in_order(
        [
            '--nnodes',
            '1',
            '--node_rank',
            '0',
            '--master_addr',
            '127.0.0.1',
            '--master_port',
            '29500',
            '--nproc_per_node',
            '1',
            f'{ROOT}/tools/test.py',
            'c.py',
            'my weights.pth',
            '--launcher',
            'pytorch',
            *WEIRD,
        ],
        out,
    )
    assert f'PYTHONPATH={ROOT}:/kept\n' in out


def test_threads_of_the_user_are_kept(echo):
    out = run('sh', 'dist_train.sh', 'c.py', '2', PYTHON=str(echo), OMP_NUM_THREADS='7').stdout
    assert 'OMP_NUM_THREADS=7' in out


def test_more_processes_than_cores_get_a_thread_each(echo):
    out = run(
        'sh', 'dist_train.sh', 'c.py', '100000', PYTHON=str(echo), PATH='/usr/bin:/bin'
    ).stdout
    assert 'OMP_NUM_THREADS=1\n' in out


@pytest.mark.parametrize('shell', SHELLS)
@pytest.mark.parametrize(
    'script, args, tool',
    [
        (
            'slurm_train.sh',
            ['c.py', 'my dir'],
            ['train.py', 'c.py', '--launcher', 'slurm', '--work-dir', 'my dir'],
        ),
        ('slurm_train.sh', ['c.py'], ['train.py', 'c.py', '--launcher', 'slurm']),
        ('slurm_test.sh', ['c.py', 'w.pth'], ['test.py', 'c.py', 'w.pth', '--launcher', 'slurm']),
    ],
)
def test_slurm_scripts_pass_everything_on(shell, script, args, tool, echo, tmp_path):
    echo.rename(tmp_path / 'srun')
    out = run(
        shell,
        script,
        'gpu',
        'job 1',
        *args,
        *WEIRD,
        PATH=f'{tmp_path}:/usr/bin:/bin',
        GPUS='4',
        SRUN_ARGS='--qos high',
        PYTHON='py',
    ).stdout
    assert has_in_order(
        [
            '-p',
            'gpu',
            '--job-name=job 1',
            '--gres=gpu:4',
            '--ntasks=4',
            '--ntasks-per-node=4',
            '--cpus-per-task=5',
            '--kill-on-bad-exit=1',
            '--qos',
            'high',
            'py',
            '-u',
            f'{ROOT}/tools/{tool[0]}',
            *tool[1:],
            *WEIRD,
        ],
        out,
    )


@pytest.mark.parametrize(
    'script', ['dist_train.sh', 'dist_test.sh', 'slurm_train.sh', 'slurm_test.sh']
)
def test_missing_arguments_show_the_usage(script):
    done = run('sh', script, 'one')
    assert done.returncode == 2
    assert done.stderr.startswith('usage:')
