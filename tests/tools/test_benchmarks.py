"""The benchmarks of networks on settings so small that their figures mean nothing."""

import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from mmlk.benchmark.turns import deviation
from tests.cases import MICRO_ARCHS
from tests.tools.workbench import ROOT

sys.path.insert(0, str(ROOT / 'tools' / 'bench'))

import benchmark_classifiers  # noqa: E402
import benchmark_models  # noqa: E402
import benchmark_tables  # noqa: E402
import contests  # noqa: E402
import networks  # noqa: E402

TINY = dict(depths=(1, 1, 1, 1), dims=(16, 24, 32, 40))
BACKBONE = networks.Case(
    'InceptionNeXt', (2, 3, 64, 64), False, TINY, rival='authors', deploy=True, threads=1
)
CONFIG = networks.Case(
    str(ROOT / 'configs/fpn_recnext_m0_ade20k_mini.py'),
    (1, 3, 64, 96),
    False,
    rival='authors',
    deploy=True,
    threads=1,
)


def found(case, side, folder):
    """What one side of a case is compared by, computed in this process."""
    torch.save(list(networks.build(case).state_dict().values()), folder / 'weights.pth')
    image = np.random.default_rng(0).standard_normal(case.shape).astype(np.float32)
    layout = 'channels_last' if side == 'rival' else 'contiguous'
    return networks.timed(case, side, 'eager', layout, folder / 'weights.pth', image).outputs()


WITHOUT_RIVAL = ('MetaNeXt', 'RepLKNet', 'UniRepLKNet')


@pytest.mark.parametrize('kind', WITHOUT_RIVAL)
def test_a_network_without_authors_here_has_no_rival(kind):
    case = replace(BACKBONE, model=kind, arch=MICRO_ARCHS[kind], kwargs={})
    with pytest.raises(ValueError, match=f'{kind} has no rival'):
        networks.rival(case)


@pytest.mark.parametrize('norms, train', [(False, False), (True, True)])
@pytest.mark.parametrize('kind', [kind for kind in MICRO_ARCHS if kind not in WITHOUT_RIVAL])
def test_authors_backbones_compute_what_ours_do(kind, norms, train, tmp_path):
    kwargs = dict(output_norm=norms, out_indices=(1, 3))
    case = replace(BACKBONE, model=kind, arch=MICRO_ARCHS[kind], kwargs=kwargs, train=train)
    kinds = [
        [type(each) for each in network.modules()]
        for network in (networks.build(case), networks.rival(case))
    ]
    assert kinds[0] != kinds[1]
    ours, theirs = (found(case, side, tmp_path) for side in ('ours', 'rival'))
    bound = contests.TRAINING_TOLERANCE if train else contests.TOLERANCE
    assert len(ours) == (3 if train else 2)
    assert deviation(kind, theirs, ours, bound) <= bound
    assert not train or np.abs(ours[1]).max() > 0, 'the gradient shows nothing'


@pytest.mark.parametrize('train', [False, True])
def test_a_whole_config_has_the_same_heads_on_the_authors_backbone(train, tmp_path):
    case = replace(CONFIG, train=train, shape=(2, 3, 64, 96) if train else CONFIG.shape)
    rival = networks.rival(case)
    assert type(rival.backbone).__name__ == 'Normed'
    assert type(rival.decode_head).__name__ == 'FPNHead'
    ours, theirs = (found(case, side, tmp_path) for side in ('ours', 'rival'))
    assert deviation('config', theirs, ours, contests.TRAINING_TOLERANCE) <= 1e-2
    if train:
        assert 1 < ours[0] < 20, 'the loss of the heads, not of the maps'


def test_a_rival_with_other_parameters_is_refused(tmp_path):
    case = replace(
        BACKBONE, rival='torch.nn:Linear', rival_kwargs=dict(in_features=2, out_features=2)
    )
    with pytest.raises(RuntimeError, match='the rival has other parameters'):
        found(case, 'rival', tmp_path)
    with pytest.raises(ValueError, match='only backbones and segmentors'):
        networks.exported(case, nn.Linear(2, 2), tmp_path / 'a.onnx')


@pytest.mark.slow
@pytest.mark.parametrize('name', benchmark_classifiers.CASES)
def test_both_sides_of_every_pair_give_the_same_scores(name, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / 'tools' / 'bench')
    words = ['--batch', '2', '--size', '64', '--threads', '1', '--device', 'cpu']
    args = benchmark_classifiers.parse([*words, '--mode', 'infer'])
    (case,) = benchmark_models.cases(benchmark_classifiers.settings(args, name))
    ours = networks.build(case).eval()
    authors = networks.adopt(networks.rival(case), list(ours.state_dict().values())).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        want = [authors(x).numpy()]
        folded = networks.folded(ours, 'ours')(x), networks.folded(authors, 'rival')(x)
        for got in (ours(x), *folded):
            assert deviation(name, [got.numpy()], want, 1e-3) <= 1e-3


def test_timm_that_is_missing_is_said(monkeypatch, capsys):
    monkeypatch.setattr(benchmark_classifiers.importlib.util, 'find_spec', lambda name: None)
    rows = benchmark_classifiers.time_classifier(benchmark_classifiers.parse([]), 'inceptionnext_t')
    assert rows == [dict(classifier='inceptionnext_t', result='skipped: timm is not installed')]
    assert 'timm is not installed' in capsys.readouterr().out


def test_sides_of_a_case():
    every = benchmark_models.RIVALS
    names = contests.sides(BACKBONE, every, ['contiguous', 'channels_last'], compiled=True)
    assert names[:3] == ['ours contiguous', 'ours channels_last', 'ours compile']
    assert names[3:] == [
        'rival contiguous',
        'rival channels_last',
        'rival compile',
        'onnxruntime',
        'openvino',
    ]
    training = contests.sides(replace(BACKBONE, train=True), every, ['contiguous'])
    assert training == ['ours contiguous', 'rival contiguous', 'rival compile']
    alone = contests.sides(replace(BACKBONE, rival=None), every, ['contiguous'])
    assert alone == ['ours contiguous', 'onnxruntime', 'openvino']


def results_of(**times):
    return {
        name.replace('_', ' ', 1): dict(
            median_ms=time,
            min_ms=time - 1,
            quartiles_ms=[time - 1, time + 1],
            images_per_second=1e3 / time,
            peak_mb=10 * time,
            deviation=0.0,
            rounds=3,
        )
        for name, time in times.items()
    }


def test_gains_are_those_of_the_layout_of_images_and_of_the_better_ones():
    results = results_of(ours_contiguous=20, ours_channels_last=10, rival_contiguous=40)
    results |= results_of(rival_channels_last=30, onnxruntime=15)
    results['openvino'] = dict(note='failed: it is not there')
    assert contests.gains(results) == {
        'rival contiguous': 2.0,
        'rival channels_last': 1.5,
        'onnxruntime': 0.75,
        'rival, better layout of each side': 3.0,
    }
    assert contests.gain(results, ['openvino'], ['ours contiguous']) is None


def test_report_table_and_plot(tmp_path):
    pytest.importorskip('matplotlib')
    rows = []
    for size, time in (('1x3x64x64', 10), ('1x3x128x128', 40), ('4x3x64x64', 30)):
        results = results_of(ours_contiguous=time, rival_contiguous=2 * time)
        results['openvino'] = dict(note='not there')
        row = dict(model='x', mode='infer', input=size, threads=2, results=results)
        rows.append(dict(row, gains=contests.gains(results)))
    lines = benchmark_models.described(rows[0])
    assert lines[0] == '1x3x64x64, 2 threads' and 'openvino               not there' in lines[3]
    assert lines[4] == 'infer  gain over rival contiguous: 2.00x'
    table = benchmark_models.markdown(rows)
    line = '| x | 1x3x128x128 | 2 | infer | rival contiguous | 80.0 [79.0-81.0] | 800 | 2.00x |'
    assert line in table.splitlines()
    assert len({row.count('|') for row in table.splitlines()}) == 1
    benchmark_models.plot(rows, tmp_path / 'cost.svg')
    drawn = (tmp_path / 'cost.svg').read_text()
    assert drawn.count('id="legend_1"') == 1 and 'pixels of an image' in drawn


@pytest.mark.parametrize(
    'words, message',
    [
        (['--input', '3x224x224'], 'batch x channels x height x width'),
        (['--clock', 'cpu', '--threads', '1', '2'], 'use --threads 1'),
    ],
)
def test_bad_words_are_refused(words, message, capsys):
    with pytest.raises(SystemExit):
        benchmark_models.parse(['SLaK', *words])
    assert message in capsys.readouterr().err


def test_every_row_of_the_tables_can_be_built(capsys):
    every = benchmark_tables.rows(2)
    assert len({row.key for row in every}) == len(every)
    assert [row.table for row in every[:5]] == ['Inference, 224 x 224'] * 5
    for row in every:
        assert (row.case.threads == 2) or row.table == 'Inference, threads'
        assert not row.case.model.endswith('.py') or (ROOT / row.case.model).is_file()
    benchmark_tables.main(['--list', '--threads', '2', '--only', 'Training', 'Semantic FPN'])
    assert len(capsys.readouterr().out.splitlines()) == 7


def test_tables_of_the_page_are_the_measured_ones():
    page = (ROOT / 'docs/benchmarks.md').read_text()
    found = json.loads((ROOT / 'docs/benchmarks/tables_cpu_2threads.json').read_text())
    assert {row.key for row in benchmark_tables.rows(2)} == set(found)
    assert benchmark_tables.tables(found) in page


def test_rows_are_kept_when_others_fail_or_were_there(tmp_path, monkeypatch, capsys):
    out, called = tmp_path / 'tables.json', []

    def contest(case, names, *args, **kwargs):
        called.append(case.model)
        if case.model == 'SLaK':
            raise RuntimeError('differs; nothing is timed')
        times = dict(ours_contiguous=20, ours_channels_last=10, onnxruntime=30, openvino=40)
        return {name: value for name, value in results_of(**times).items() if name in names}

    monkeypatch.setattr(benchmark_tables, 'contest', contest)
    words = ['--threads', '1', '--out', str(out), '--kept', str(tmp_path / 'kept')]
    words += ['--only', '224 x 224: SLaK', '224 x 224: DCLS', '--rounds', '3']
    benchmark_tables.main(words)
    printed = capsys.readouterr().out
    rows = json.loads(out.read_text())
    slak, dcls = rows.values()
    assert slak['failed'] == 'RuntimeError: differs; nothing is timed'
    assert (dcls['gain'], dcls['gain_in_better_layouts']) == (1.5, 3.0)
    assert dcls['memory'] == pytest.approx(200 / 300) and dcls['goal'] == [1.5, 2.0]
    assert (
        torch.__version__.startswith(dcls['versions']['torch']) and dcls['device']['threads'] == 1
    )
    assert str(ROOT) not in out.read_text()
    assert '### Inference, 224 x 224' in printed
    assert '| 20.0 [19.0-21.0] | onnxruntime 30.0' in printed and '| **1.50x** | 3.00x |' in printed
    table = [line for line in printed.splitlines() if line.startswith('|')]
    assert len(table) == 4 and len({line.count('|') for line in table}) == 1
    benchmark_tables.main([*words, '--resume'])
    assert called == ['SLaK', 'DCLSConvNeXt', 'SLaK']
    capsys.readouterr()
    benchmark_tables.main([*words, '--render'])
    assert len(called) == 3 and '| **1.50x** | 3.00x |' in capsys.readouterr().out
    benchmark_tables.main([*words, '--minutes', '-1'])
    assert len(called) == 3 and 'the time is up' in capsys.readouterr().out


@pytest.mark.slow
def test_sides_in_processes_are_verified_and_timed(tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / 'tools' / 'bench')  # where the processes look
    pytest.importorskip('onnxruntime')
    words = ['InceptionNeXt', '--kwargs', json.dumps(dict(arch=TINY)), '--rival', 'authors']
    words += ['--input', '1x3x64x64', '--mode', 'infer', '--deploy', '--threads', '1']
    words += ['--against', 'onnxruntime', '--rounds', '2', '--device', 'cpu']
    out = tmp_path / 'a.json'
    benchmark_models.main([*words, '--kept', str(tmp_path / 'kept'), '--out', str(out)])
    said = capsys.readouterr().out
    content = json.loads(out.read_text())
    (row,) = content['rows']
    assert list(row['results']) == ['ours contiguous', 'onnxruntime']
    for value in row['results'].values():
        low, high = value['quartiles_ms']
        assert 0 < low <= value['median_ms'] <= high or value['rounds'] == 2
        assert value['images_per_second'] == pytest.approx(1e3 / value['median_ms'])
        assert 0 <= value['deviation'] <= contests.TOLERANCE and value['peak_mb'] > 0
    assert f'torch {torch.__version__}' in said and 'gain over onnxruntime' in said
    assert len(list((tmp_path / 'kept').glob('*.onnx'))) == 1
    assert content['device']['threads'] == 1 and content['versions'].keys() > {
        'torch',
        'onnxruntime',
    }
