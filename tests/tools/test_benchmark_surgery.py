"""The gain table of accelerated networks, on one so small that its figures mean nothing."""

import json
import sys

import pytest
import torch

from mmlk.surgery import AcceleratedConv2d
from tests.tools.workbench import ROOT

sys.path.insert(0, str(ROOT / 'tools' / 'bench'))

import benchmark_surgery  # noqa: E402

SMALL = ['--batch', '1', '--size', '24', '--rounds', '2', '--threads', '1', '--device', 'cpu']


@pytest.fixture
def networks(monkeypatch):
    found = {
        'small': ('tests.surgery.networks', 'Net', {}),
        'dense': ('torch.nn', 'Conv2d', dict(in_channels=3, out_channels=4, kernel_size=3)),
        'missing': ('torch.nn', 'MogaNet', {}),
        'not installed': ('no_such_package', 'MogaNet', {}),
    }
    monkeypatch.setattr(benchmark_surgery, 'NETWORKS', found)


@pytest.mark.slow
def test_networks_are_verified_timed_and_reported(networks, tmp_path, capsys):
    out = tmp_path / 'gains.json'
    benchmark_surgery.main([*SMALL, '--layout', 'contiguous', '--out', str(out)])
    facts, *lines = capsys.readouterr().out.splitlines()
    assert f'torch {torch.__version__}' in facts and 'threads 1' in facts
    assert lines[0].split()[:3] == ['small', 'contiguous', 'train'] and '3 of 3 layers' in lines[0]
    rows = json.loads(out.read_text())['rows']
    assert [(row['network'], row.get('mode', row.get('result'))) for row in rows[:3]] == [
        ('small', 'train'),
        ('small', 'infer'),
        ('dense', 'nothing taken'),
    ]
    for row in rows[:2]:
        ratio = row['median_ms']['untouched'] / row['median_ms']['accelerated']
        assert row['gain'] == pytest.approx(ratio)
    assert [row['result'] for row in rows[3:]] == [
        "not available: module 'torch.nn' has no attribute 'MogaNet'",
        "not available: No module named 'no_such_package'",
    ]


def test_wrong_gradients_are_not_timed(networks, monkeypatch):
    forward = AcceleratedConv2d.forward

    def wrong(self, x):
        y = forward(self, x)
        return y + 0.01 * (y - y.detach())

    monkeypatch.setattr(AcceleratedConv2d, 'forward', wrong)
    with pytest.raises(RuntimeError, match='of small is off by .* it is not timed'):
        benchmark_surgery.main([*SMALL, '--only', 'small'])
