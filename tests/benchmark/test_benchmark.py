"""Forms of one model: compared first, timed in turns, and named where they are not there."""

import json
import mmap
import sys
from functools import partial
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest

from mmlk.benchmark import report, run, turns
from mmlk.benchmark.forms import Task, caller, peak_of_process, reset_peak
from mmlk.benchmark.process import FormProcess
from mmlk.cli import program

FIGURES = {'p50', 'p90', 'images_per_second', 'peak_megabytes', 'deviation'}
TASK = Task('a', None, None, None, 2, (64, 64), 'cpu', 1)


def process_of(form, folder, source=None):
    return FormProcess(partial(caller, form, TASK, folder, source), folder / 'image.npy')


def command(capsys, *words):
    assert program.main(['benchmark', *map(str, words), '--threads', '1', '--rounds', '2']) == 0
    return capsys.readouterr().out


@pytest.fixture(scope='module')
def onnx_file(tmp_path_factory):
    """A convolution, as mmlk export describes a backbone."""
    onnx = pytest.importorskip('onnx')
    pytest.importorskip('onnxruntime')
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    weight = onnx.numpy_helper.from_array(np.ones((8, 3, 3, 3), np.float32), 'weight')
    graph = helper.make_graph(
        [helper.make_node('Conv', ['image', 'weight'], ['stride1'], pads=[1, 1, 1, 1])],
        'backbone',
        [helper.make_tensor_value_info('image', kind, ['batch', 3, 'height', 'width'])],
        [helper.make_tensor_value_info('stride1', kind, None)],
        [weight],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 20)], ir_version=10)
    entry = dict(shape=None, channels='RGB', values='normalised by mean and std')
    helper.set_model_props(model, dict(mmlk=json.dumps(dict(part='backbone', input=entry))))
    path = tmp_path_factory.mktemp('exported') / 'model.onnx'
    onnx.save(model, path)
    return path


def test_forms_of_an_exported_file(onnx_file, tmp_path, capsys):
    words = (onnx_file, '--shape', 64, 96, '--batch-size', 2, '--json', tmp_path / 'a.json')
    text = command(capsys, *words)
    told = json.loads((tmp_path / 'a.json').read_text())
    assert [row['form'] for row in told['rows']] == ['onnxruntime', 'openvino']
    assert told['shape'] == [64, 96] and told['batch_size'] == 2 and told['rounds'] == 2
    assert told['part'] == 'backbone' and told['weights'] == 'exported'
    assert {'mmlk', 'torch', 'onnxruntime'} <= told['versions'].keys() and told['processor']
    for row in told['rows'][: 1 + bool(find_spec('openvino'))]:
        assert row.keys() == {'form', *FIGURES}
        assert 0 < row['p50'] <= row['p90'] and row['peak_megabytes'] > 10
        assert row['images_per_second'] == pytest.approx(2e3 / row['p50'], rel=1)
        assert row['peak_megabytes'] < peak_of_process(), 'memory of this process was counted'
        assert row['deviation'] <= 1e-4
        assert f'{row["p50"]:.1f}' in text


def test_forms_of_a_name_and_those_that_are_not_installed(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run, 'find_spec', lambda name: None)
    text = command(capsys, 'recnext_m0', '--shape', 64, 64, '--json', tmp_path / 'a.json')
    rows = {row['form']: row for row in json.loads((tmp_path / 'a.json').read_text())['rows']}
    assert list(rows) == ['eager', 'folded', 'compiled', 'onnxruntime', 'openvino']
    assert rows['eager']['deviation'] == 0 < rows['folded']['deviation'] <= 1e-4
    assert rows['compiled']['note'] == 'not asked for: --compile'
    assert rows['openvino']['note'].startswith('not installed: pip install onnx onnxscript')
    assert 'recnext_m0: classifier, random weights, 1 x 64 x 64, 2 rounds' in text
    assert all(f'\n{name} ' in text for name in rows)


@pytest.mark.parametrize(
    'found, want, message',
    [
        ([0.0, 1.0], [0.0, 1.01], "outputs of the form 'x' differ from the first by 0.0099"),
        ([0.0, np.nan], [0.0, 1.0], 'differ from the first by nan'),
        ([[0.0, 1.0]], [0.0, 1.0], 'differ from the first by inf'),
    ],
)
def test_nothing_is_timed_where_outputs_differ(found, want, message, monkeypatch):
    outputs = {'first': [np.array(want, np.float32)], 'x': [np.array(found, np.float32)]}
    running = {name: SimpleNamespace(outputs=lambda v=v: v) for name, v in outputs.items()}
    with pytest.raises(RuntimeError, match=message):
        turns.verify(running, {})


def test_integers_may_differ_in_one_of_a_thousand():
    labels = np.zeros((1, 100, 100), np.int64)
    other = labels.copy()
    other[0, 0, :10] = 1
    assert turns.deviation('x', [other], [labels]) == pytest.approx(1e-3)
    other[0, 1, 0] = 1
    with pytest.raises(RuntimeError, match='differ'):
        turns.deviation('x', [other], [labels])


def test_a_form_that_fails_is_a_row_that_says_why(tmp_path):
    np.save(tmp_path / 'image.npy', np.zeros((1, 3, 64, 64), np.float32))
    with process_of('onnxruntime', tmp_path, tmp_path / 'absent.onnx') as process:
        notes = {}
        with pytest.raises(RuntimeError, match='no form runs: failed: .*absent.onnx'):
            turns.verify({'onnxruntime': process}, notes)
    process._process.join(10)
    assert process._process.exitcode == 0
    rows = [dict(form='onnxruntime', note=notes['onnxruntime'])]
    about = dict(model='a', part='backbone', weights='exported', batch_size=1, shape=(64, 64))
    about.update(rounds=2, threads=1, processor='x', versions={}, rows=rows)
    assert f'onnxruntime    {notes["onnxruntime"]}' in report.table(about)


def test_a_process_that_ends_is_told(tmp_path):
    with process_of('eager', tmp_path) as process:  # there is no image to read
        assert 'its process ended with status 1' in process.outputs()
        with pytest.raises(RuntimeError, match='ended with status 1'):
            process.step()


@pytest.mark.parametrize(
    'words, message',
    [
        (['recnext_m33'], 'closest names: recnext_m3'),
        (['absent.onnx'], "there is no file 'absent.onnx'"),
        (['a.onnx', 'b.pth'], 'takes no checkpoint'),
        (['recnext_m0', '--part', 'segmentor'], 'no segmentor with one decode head'),
    ],
)
def test_bad_input_is_one_message(words, message):
    with pytest.raises(SystemExit, match=message):
        program.main(['benchmark', *words])


def test_numbers_must_be_positive(capsys):
    with pytest.raises(SystemExit) as stop:
        program.main(['benchmark', 'recnext_m0', '--rounds', '0'])
    assert stop.value.code == 2 and '--rounds must be at least 1' in capsys.readouterr().err


@pytest.mark.skipif(sys.platform != 'linux', reason='only Linux can forget a peak')
def test_a_peak_is_counted_anew():
    def hold(megabytes):
        with mmap.mmap(-1, megabytes << 20) as pages:
            pages.write(bytes(megabytes << 20))

    hold(256)
    before = peak_of_process()
    held = reset_peak()
    assert held < before - 200
    assert peak_of_process() < held + 50
    hold(128)
    assert peak_of_process() > held + 100
