"""Two processes on gloo hold the same masks."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['replicated', 'sharded'])
def test_two_processes_hold_the_same_masks(tmp_path, kind):
    processes = [
        subprocess.Popen(
            [sys.executable, '-m', 'tests.engine.sparse_worker', str(rank), '2', tmp_path, kind],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], '\n'.join(outputs)
    first, second = (torch.load(tmp_path / f'rank{rank}.pt') for rank in range(2))
    assert first['step'] == second['step'] == 6
    assert first['masks'].keys() == second['masks'].keys()
    for name, mask in first['masks'].items():
        assert name.startswith('backbone.') and torch.equal(mask, second['masks'][name]), name
    for rank in (first, second):
        assert rank['densities'] == pytest.approx([0.6] * 6, rel=0.005)
        assert rank['strays'] == 0
