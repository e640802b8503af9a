"""A sparse segmentor on generated scenes, killed by the system and resumed."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


def run(*arguments):
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=300,
    )


@pytest.mark.slow
def test_killed_and_resumed_training_on_scenes_keeps_masks_and_density(tmp_path):
    data = tmp_path / 'data'
    made = run(
        'tools/generate_data.py',
        data,
        '--format',
        'ade20k',
        '--train',
        6,
        '--val',
        1,
        '--size',
        '96x128',
    )
    assert made.returncode == 0, made.stdout
    worker = ('-m', 'tests.engine.scenes_worker', data)
    whole = run(*worker, tmp_path / 'whole', -1, 'fresh')
    assert whole.returncode == 0, whole.stdout
    killed = run(*worker, tmp_path / 'broken', 6, 'fresh')
    assert killed.returncode == -signal.SIGKILL, killed.stdout
    resumed = run(*worker, tmp_path / 'broken', -1, 'resume')
    assert resumed.returncode == 0, resumed.stdout
    want, got = (torch.load(tmp_path / name / 'result.pt') for name in ('whole', 'broken'))
    assert want['densities'] == pytest.approx([0.6] * 8, rel=0.005)
    assert got['densities'] == pytest.approx([0.6] * 4, rel=0.005)
    assert want['strays'] == got['strays'] == 0
    assert want['masks'].keys() == got['masks'].keys()
    for name, mask in want['masks'].items():
        assert torch.equal(mask, got['masks'][name]), name
    log = ''.join(path.read_text() for path in (tmp_path / 'whole').rglob('scalars.json'))
    assert 'density/backbone.stages.0.0.large_kernel.LoRA1.conv.weight' in log
