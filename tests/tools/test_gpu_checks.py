"""The GPU checks script where there is no GPU, and its tables of cases."""

import json
import math
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.cases import TOLERANCE, assert_close

TOOLS = Path(__file__).resolve().parents[2] / 'tools' / 'bench'
sys.path.insert(0, str(TOOLS))

import gpu_cases  # noqa: E402
import gpu_correctness  # noqa: E402
import gpu_timing  # noqa: E402
import run_gpu_checks  # noqa: E402
from benchmark_cases import depthwise  # noqa: E402
from gpu_runner import Runner, Task  # noqa: E402

from tests.tools import gpu_tasks  # noqa: E402

SMALL = [each for each in gpu_cases.PARITY if math.prod(each.shape) <= 12_000]


def test_without_a_gpu_it_says_so(tmp_path):
    run = subprocess.run(
        [sys.executable, TOOLS / 'run_gpu_checks.py', '--out', tmp_path],
        capture_output=True,
        text=True,
        env={**os.environ, 'CUDA_VISIBLE_DEVICES': ''},
    )
    assert run.returncode == 2
    assert 'torch sees no CUDA device, nothing was checked' in run.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('case', SMALL, ids=lambda each: f'{each.name} {each.shape}')
def test_both_sides_of_a_case_are_one_operator(case):
    tensors = case.inputs()
    with torch.no_grad():
        assert_close('y', case.ours(*tensors), case.native(*tensors), TOLERANCE[torch.float32][1])


def test_every_timed_case_has_positive_traffic():
    for entry in gpu_cases.TIMED:
        forward, train = (gpu_cases.traffic(entry.case, 2, entry.passes, mode) for mode in (0, 1))
        assert 0 < forward < train


@pytest.fixture
def on_cpu(monkeypatch):
    def inputs(case, dtype, form):
        return [
            each.to(memory_format=form) if each.dim() == 4 else each
            for each in (each.requires_grad_() for each in case.inputs())
        ]

    monkeypatch.setattr(gpu_correctness, 'inputs', inputs)


def test_parity_tells_right_from_wrong(on_cpu):
    case = depthwise((1, 3, 6, 5), (3, 3))
    wrong = case._replace(ours=lambda *args: 1.001 * case.ours(*args))
    unwritten = case._replace(ours=lambda x, weight: case.ours(x, weight) + torch.empty(1))
    results = [
        gpu_correctness.check_case(each, 'float32', 'contiguous')['result']
        for each in (case, wrong, unwritten)
    ]
    assert results[0] == 'ok'
    assert results[1].startswith('failed: error ')
    assert results[2].startswith('failed: error inf')


def run(tasks, **options):
    sys.path.insert(0, str(TOOLS))  # for the processes
    rows = []
    with Runner(2) as runner:
        runner.run(tasks, rows.extend, **{'jobs': 2, 'limit': 120, 'cap': 240, **options})
    return {row['task']: row['result'] for row in rows}


def test_no_task_costs_another_its_result():
    tasks = [
        *gpu_tasks.doubles(None),
        Task('error', gpu_tasks.fail),
        Task('death', gpu_tasks.die),
        Task('rows', gpu_tasks.several),
        Task('last', gpu_tasks.twice, (7,)),
    ]
    want = {
        **{str(each): f'ok {2 * each}' for each in range(3)},
        'error': 'failed: ValueError: no such thing',
        'death': 'failed: its process ended with exit status 3',
        'a': 'ok',
        'b': 'ok',
        '7': 'ok 14',
    }
    assert run(tasks) == want


def test_tasks_that_hang_are_stopped_and_those_without_time_are_named():
    found = run(
        [Task('endless', gpu_tasks.hang), Task('1', gpu_tasks.twice, (1,))], jobs=1, limit=1
    )
    assert found == {'endless': 'failed: stopped after 1 s', '1': 'ok 2'}
    found = run([Task('endless', gpu_tasks.hang), Task('next', gpu_tasks.hang)], jobs=1, cap=1)
    assert found == dict.fromkeys(('endless', 'next'), 'skipped: out of time')


def test_a_process_that_cannot_start_is_an_error():
    sys.path[:] = [each for each in sys.path if Path(each) != TOOLS]
    with pytest.raises(RuntimeError, match='a process cannot start, exit status 1'):
        with Runner(1) as runner:
            runner.run([Task('1', gpu_tasks.twice, (1,))], print, jobs=1, limit=9, cap=99)


def test_shares_of_the_sections_are_a_whole():
    shares = [each.share for each in run_gpu_checks.SECTIONS.values()]
    assert math.isclose(sum(shares), 1)
    assert list(run_gpu_checks.SECTIONS)[:3] == ['parity', 'kernels', 'operators']


@pytest.mark.parametrize('name', run_gpu_checks.SECTIONS)
def test_every_task_can_be_sent_to_a_process(name, monkeypatch):
    args = run_gpu_checks.parse([])
    for task in run_gpu_checks.SECTIONS[name].tasks(args):
        assert pickle.loads(pickle.dumps(task)) == task
    assert not run_gpu_checks.SECTIONS[name].tasks(run_gpu_checks.parse(['--filter', 'x x'])) or (
        name in ('limits', 'operators', 'sanitizer')
    )


def test_a_killed_run_loses_nothing(tmp_path):
    process = subprocess.Popen(
        [sys.executable, gpu_tasks.__file__, '--out', tmp_path],
        env={**os.environ, 'PYTHONPATH': str(TOOLS.parents[1])},
        stdout=subprocess.DEVNULL,
    )
    lines, started = tmp_path / 'gpu_operators.jsonl', time.monotonic()
    while not (lines.exists() and lines.read_text().count('\n') == 4):
        assert process.poll() is None and time.monotonic() - started < 120
        time.sleep(0.1)
    process.kill()
    process.wait()
    whole = json.loads((tmp_path / 'gpu_parity.json').read_text())
    assert whole['about'] == {'device': 'none'}
    assert {row['result'] for row in whole['rows']} == {'ok 0', 'ok 2', 'ok 4'}
    about, *rows = map(json.loads, lines.read_text().splitlines())
    assert about == {'about': {'device': 'none'}}
    assert [row['result'] for row in rows] == ['ok 0', 'ok 2', 'ok 4']
    assert all(row['seconds'] >= 0 for row in rows)


def test_timed_operators_are_a_table():
    row = dict(case='7x7', shape=(2, 8, 9, 9), mode='train', ours_ms=1.0, baseline_ms=2.5, gain=2.5)
    row.update(aim=2.0, memory_floor_ms=0.5, share_of_memory_floor=0.5, gain_over_compiled=1.5)
    failed = dict(case='5x5', shape=(2, 8, 9, 9), mode='train', result='failed: wrong')
    head, first, second = gpu_timing.table([{'case': 'ceilings'}, row, failed])
    assert first.split() == '7x7 2x8x9x9 train 1.000 2.500 2.50x 2.0 0.500 50% 1.5'.split()
    assert second.split() == '5x5 2x8x9x9 train failed: wrong'.split() and 'gain' in head
