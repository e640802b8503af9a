"""The GPU checks script where there is no GPU, and its tables of cases."""

import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.cases import TOLERANCE, assert_close

TOOLS = Path(__file__).resolve().parents[2] / 'tools' / 'bench'
sys.path.insert(0, str(TOOLS))

import gpu_cases  # noqa: E402
import gpu_classifiers  # noqa: E402
import gpu_correctness  # noqa: E402
from benchmark_cases import depthwise  # noqa: E402

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
        gpu_correctness.check_case(each, torch.float32, 'contiguous')['result']
        for each in (case, wrong, unwritten)
    ]
    assert results[0] == 'ok'
    assert results[1].startswith('failed: error ')
    assert results[2].startswith('failed: error inf')


def twice(value):
    return {'result': str(2 * value)}


@pytest.mark.parametrize('jobs', [1, 2])
def test_tasks_keep_their_order_and_their_time(jobs):
    assert gpu_correctness.in_processes(jobs, 60, twice, [(1,), (2,), (3,)]) == [
        {'result': '2'},
        {'result': '4'},
        {'result': '6'},
    ]


def test_tasks_out_of_time_are_told():
    rows = gpu_correctness.in_processes(1, -1, twice, [(1,)])
    assert rows == [{'task': ['1'], 'result': 'skipped: out of time'}]


def test_a_classifier_that_fails_does_not_cost_the_others(monkeypatch):
    def time_classifier(options, name):
        assert (options.device, options.batch, options.amp) == ('cuda', 4, 'bfloat16')
        if 'a3' in name:
            raise RuntimeError('out of memory')
        return [dict(classifier=name)]

    monkeypatch.setattr(gpu_classifiers.benchmark_classifiers, 'time_classifier', time_classifier)
    args = SimpleNamespace(batch=4, seconds=60, filter='recnext')
    assert gpu_classifiers.classifiers(args) == [
        dict(classifier='recnext_m3'),
        dict(classifier='recnext_a3', result='failed: out of memory'),
    ]
    args.seconds = -1
    assert gpu_classifiers.classifiers(args)[0]['result'] == 'skipped: out of time'
