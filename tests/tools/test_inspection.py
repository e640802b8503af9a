"""Counting and the doctor."""

import os
import subprocess
import sys

import pytest
from mmengine.config import Config
from torch import nn

from mmlk.cli import complexity
from mmlk.cli.config import load_config
from tests.tools.workbench import ROOT


@pytest.fixture
def cfg(config):
    return Config.fromfile(str(config))


class _Trunk(nn.Module):
    """Two convolutions whose cost is known."""

    in_channels = 3

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 5, padding=2, groups=8)

    def forward(self, image):
        return (self.depthwise(self.conv(image)),)


class _Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 4, 1)

    def forward(self, maps):
        return self.conv(maps[0])


def test_count_of_known_layers():
    model = nn.Module()
    model.backbone, model.decode_head, model.auxiliary_head = _Trunk(), _Head(), _Head()
    parts = complexity.measure(model, (20, 30))
    assert parts == [
        ('backbone', 8 * 27 + 8 + 8 * 25 + 8, 150 * 8 * 27 + 150 * 8 * 25),
        ('decode_head', 4 * 8 + 4, 150 * 8 * 4),
        ('auxiliary_head', 4 * 8 + 4, None),
    ]
    assert complexity.table(parts).splitlines()[-1].split() == ['total', '504', '0.000', 'G']


# Recomputed from the architecture, convolutions and linear layers only, within 0.1 % of Tables 6
# and 7 of the InceptionNeXt paper.
@pytest.mark.slow
@pytest.mark.parametrize(
    'name, shape, parameters, gigamacs',
    [
        ('upernet_inceptionnext_t_ade20k', (512, 2048), 56.40, 932.8),
        ('fpn_inceptionnext_s_ade20k', (512, 512), 49.67, 65.3),
        ('fpn_inceptionnext_b_ade20k', (512, 512), 84.94, 99.4),
    ],
)
def test_count_of_published_networks(name, shape, parameters, gigamacs):
    parts = complexity.measure(complexity.build_model(load_config(f'mmlk::{name}.py')), shape)
    assert sum(part.parameters for part in parts) / 1e6 == pytest.approx(parameters, abs=0.006)
    assert sum(part.macs or 0 for part in parts) / 1e9 == pytest.approx(gigamacs, abs=0.06)


def test_folding_leaves_fewer_parameters_and_as_many_products(cfg):
    plain = complexity.measure(complexity.build_model(cfg), (64, 64))
    folded = complexity.measure(complexity.build_model(cfg, deploy=True), (64, 64))
    assert folded[0].parameters < plain[0].parameters
    assert folded[0].macs == plain[0].macs


@pytest.mark.slow
def test_doctor_reports_this_machine():
    done = subprocess.run(
        [sys.executable, str(ROOT / 'tools/doctor.py')],
        text=True,
        capture_output=True,
        env=dict(os.environ, MMLK_MMCV_OPS='torchvision'),
    )
    assert done.returncode == 0, done.stderr
    for subject in ('Python', 'torch ', 'mmseg', 'mmcv operators', 'GPU', 'mmlk', 'operators'):
        assert f'\n{subject}' in f'\n{done.stdout}'
    assert '\nmmcv operators  NMS and RoIAlign of torchvision' in done.stdout


def test_doctor_tells_why_a_package_cannot_be_imported(tmp_path):
    (tmp_path / 'mmseg').mkdir()
    (tmp_path / 'mmseg/__init__.py').write_text(
        'raise AssertionError("MMCV==2.2.0 is used but incompatible")'
    )
    done = subprocess.run(
        [sys.executable, '-S', str(ROOT / 'tools/doctor.py')],
        text=True,
        capture_output=True,
        env=dict(os.environ, PYTHONPATH=str(tmp_path)),
    )
    assert done.returncode == 0, done.stderr
    assert 'mmseg: cannot be imported: AssertionError: MMCV==2.2.0 is used' in done.stdout
    assert 'mmcv operators: detection needs them' in done.stdout


def test_doctor_survives_an_empty_machine():
    """Without site-packages nothing can be imported, and every package comes with its remedy."""
    done = subprocess.run(
        [sys.executable, '-I', '-S', str(ROOT / 'tools/doctor.py')], text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert 'torch: needed for everything: pip install torch' in done.stdout
    assert 'mmdet: needed for detection: pip install onedl-mmdetection' in done.stdout
    assert f'in {ROOT}' in done.stdout
