"""The picture of positions and kernels: written for initial and trained weights, clear when refused."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

pytest.importorskip('matplotlib')
ROOT = Path(__file__).parents[2]
CONFIG = 'configs/upernet_dcls_convnext_n_ade20k_mini.py'


def plot(*arguments):
    return subprocess.run(
        [sys.executable, 'tools/plot_dcls.py', *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


def test_draws_initial_and_loaded_positions(tmp_path):
    from mmengine.config import Config

    from mmlk.registry import MODELS

    assert plot(CONFIG, tmp_path / 'initial.png', '--channels', 3).returncode == 0
    backbone = MODELS.build(dict(Config.fromfile(ROOT / CONFIG).model.backbone))
    with torch.no_grad():
        backbone.stages[1][0].dwconv.P.mul_(10)
    backbone.clamp_parameters()
    torch.save(
        {'state_dict': {f'backbone.{key}': value for key, value in backbone.state_dict().items()}},
        tmp_path / 'a.pth',
    )
    run = plot(
        CONFIG,
        tmp_path / 'loaded.png',
        '--channels',
        3,
        '--checkpoint',
        tmp_path / 'a.pth',
        '--layer',
        'stages.1.1',
    )
    assert run.returncode == 0, run.stderr
    initial, loaded = (Image.open(tmp_path / f'{name}.png') for name in ('initial', 'loaded'))
    assert min(initial.size) > 200 and initial.tobytes() != loaded.tobytes()


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ((CONFIG, 'x.png', '--layer', 'stages.9.0'), "layer 'stages.9.0' is not one of stages.0.0"),
        (('configs/upernet_inceptionnext_t_ade20k.py', 'x.png'), 'has no learnable spacings'),
    ],
)
def test_refusals_are_clear(arguments, message):
    run = plot(*arguments)
    assert run.returncode != 0 and message in run.stderr and 'Traceback' not in run.stderr
