"""The GPU checks script where there is no GPU, and its tables of cases."""

import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.cases import TOLERANCE, assert_close

TOOLS = Path(__file__).resolve().parents[2] / 'tools'
sys.path.insert(0, str(TOOLS))

import gpu_cases  # noqa: E402

SMALL = [each for each in gpu_cases.PARITY if math.prod(each.shape) <= 12_000]


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_without_a_gpu_it_says_so(tmp_path):
    run = subprocess.run([sys.executable, TOOLS / 'run_gpu_checks.py', '--out', tmp_path],
                         capture_output=True, text=True)
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
