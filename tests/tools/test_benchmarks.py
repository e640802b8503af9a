"""The classifiers' benchmark on a setting so small that its figures mean nothing."""

import json
import sys

import pytest
import torch

from tests.tools.workbench import ROOT

sys.path.insert(0, str(ROOT / 'tools' / 'bench'))

import benchmark_classifiers  # noqa: E402
import benchmark_models  # noqa: E402
import classifiers  # noqa: E402

SMALL = ['--batch', '2', '--size', '64', '--rounds', '2', '--threads', '1', '--device', 'cpu']


@pytest.mark.slow
def test_pairs_are_verified_timed_and_reported(tmp_path, capsys):
    out = tmp_path / 'rates.json'
    words = ['--only', 'inceptionnext_a', 'recnext_m0', *SMALL, '--layout', 'contiguous']
    benchmark_classifiers.main([*words, '--out', str(out)])
    said = capsys.readouterr().out
    facts, *lines = said.splitlines()
    assert f'torch {torch.__version__}' in facts and 'threads 1' in facts and 'cpu ' in facts
    assert 'inceptionnext_a, 2x3x64x64: outputs agree with the rival' in lines[0]
    for mode in ('train', 'infer'):
        for side in ('ours', 'rival'):
            assert sum(line.startswith(f'{mode:<6} {side}') for line in lines) == 2
    assert said.count(' img/s') == 8
    content = json.loads(out.read_text())
    assert content['settings']['size'] == 64 and content['device']['threads'] == 1
    names = [(row['classifier'], row['mode'], row['input']) for row in content['rows']]
    assert names == [
        (name, mode, '2x3x64x64')
        for name in ('inceptionnext_a', 'recnext_m0')
        for mode in ('train', 'infer')
    ]
    rates = content['rows'][0]['results']['ours contiguous']
    assert rates['images_per_second'] == pytest.approx(2e3 / rates['median_ms'])
    low, high = rates['quartiles_ms']
    assert 0 < low <= rates['median_ms'] <= high


@pytest.mark.slow
@pytest.mark.parametrize('name', benchmark_classifiers.CASES)
def test_both_sides_of_every_pair_give_the_same_scores(name):
    case = benchmark_classifiers.settings(benchmark_classifiers.parse(SMALL), name)
    torch.manual_seed(0)
    ours, authors = benchmark_models.build(case), benchmark_models.rival(case)
    said = benchmark_models.agree(
        ours, authors, torch.randn(1, 3, 64, 64), deploy=True, required=True
    )
    assert said.startswith('outputs agree')


def test_a_pair_that_differs_is_not_timed(monkeypatch):
    def spoilt(family, arch):
        other = classifiers.ours(family, arch)
        other.head.register_forward_hook(lambda module, args, scores: 1.01 * scores)
        return other

    args = benchmark_classifiers.parse(['--only', 'recnext_m0', *SMALL])
    monkeypatch.setattr(classifiers, 'authors', spoilt)
    with pytest.raises(RuntimeError, match='differs from the rival .* nothing is timed'):
        benchmark_classifiers.time_classifier(args, 'recnext_m0')
    monkeypatch.setattr(classifiers, 'authors', lambda family, arch: torch.nn.Linear(2, 2))
    with pytest.raises(RuntimeError, match='other parameters; nothing is timed'):
        benchmark_classifiers.time_classifier(args, 'recnext_m0')


def test_timm_that_is_missing_is_said(monkeypatch, capsys):
    monkeypatch.setattr(benchmark_classifiers.importlib.util, 'find_spec', lambda name: None)
    rows = benchmark_classifiers.time_classifier(
        benchmark_classifiers.parse(SMALL), 'inceptionnext_t'
    )
    assert rows == [dict(classifier='inceptionnext_t', result='skipped: timm is not installed')]
    assert 'timm is not installed' in capsys.readouterr().out
