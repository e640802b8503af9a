"""Forms of one model: compared first, timed in turns, and named where they are not there."""

import json
import mmap
import sys
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

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


BOXES = [
    np.float32([[1, 2, 30, 40], [5, 5, 20, 20]]),
    np.float32([0.9, 0.4]),
    np.int64([1, 0]),
]


@pytest.fixture
def detector_file(tmp_path):
    """A file of a detector that finds two boxes in every picture."""
    onnx = pytest.importorskip('onnx')
    pytest.importorskip('onnxruntime')
    from tests.commands.test_tested import write_onnx

    values = dict(zip(('boxes', 'scores', 'labels'), BOXES, strict=True))
    nodes = [
        onnx.helper.make_node('Constant', [], [name], value=onnx.numpy_helper.from_array(value))
        for name, value in values.items()
    ]
    kinds = {n: onnx.helper.np_dtype_to_tensor_dtype(value.dtype) for n, value in values.items()}
    return write_onnx(tmp_path / 'detector.onnx', 'detection', nodes, kinds)


def test_a_detector_is_timed_on_a_picture(detector_file, tmp_path, capsys):
    Image.new('RGB', (50, 40)).save(tmp_path / 'a.png')
    text = command(
        capsys, detector_file, '--image', tmp_path / 'a.png', '--shape', 32, 48, '--rounds', 1
    )
    assert 'detector, exported weights, 1 x 32 x 48' in text and '\nonnxruntime  ' in text
    for words, message in (
        ([], 'is a detector, whose time depends on what it finds'),
        (['--image', 'a.png', '--batch-size', '2'], 'one picture per call'),
        (['--image', str(detector_file)], 'detector.onnx: cannot be decoded'),
        (['--image', 'absent.png'], 'absent.png: .*No such file'),
    ):
        with pytest.raises(SystemExit, match=f'^mmlk benchmark: error: (.|\n)*{message}'):
            program.main(['benchmark', str(detector_file), *words])


def test_a_picture_is_normalised_and_repeated(tmp_path):
    pixels = np.random.RandomState(0).randint(0, 256, (20, 30, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / 'a.png')
    task = replace(TASK, shape=(20, 30), image=str(tmp_path / 'a.png'))
    found = run._picture(task, 3, [1.0, 2.0, 3.0], [4.0, 5.0, 6.0])
    expected = (pixels - np.array([1.0, 2, 3])) / np.array([4.0, 5, 6])
    assert np.allclose(found, np.stack([expected.transpose(2, 0, 1)] * 2), atol=1e-4)
    with pytest.raises(ValueError, match='has no 4 channels'):
        run._picture(task, 4, [0.0], [1.0])


def test_objects_are_compared_in_any_order():
    assert turns.detections('x', [value[::-1].copy() for value in BOXES], BOXES) == 0
    with pytest.raises(RuntimeError, match="the form 'x' finds other objects"):
        turns.detections('x', [BOXES[0] + 1, *BOXES[1:]], BOXES)
