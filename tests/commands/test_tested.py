"""Exported files under "mmlk test": their own preparation, and the metrics of the config."""

import json

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from mmlk.inference.tested import ExportedNetwork
from tests.tools.workbench import call_tool, write_config, write_dataset

CLASSES = ('wall', 'building', 'sky')
# Class 0 for dark pixels, 1 for medium ones, 2 for bright ones, of red alone: BGR must become RGB.
SLOPES, OFFSETS = np.float32([0, 1, 2]), np.float32([0, -90, -260])


def write_onnx(path, task, nodes, outputs, constants=(), **about):
    """A hand-made file as ``mmlk export`` describes it, of pictures from 0 to 255."""
    graph = helper.make_graph(
        nodes,
        task,
        [helper.make_tensor_value_info('image', TensorProto.FLOAT, ['n', 3, 'h', 'w'])],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in constants],
    )
    entry = dict(shape=None, channels='RGB', values='0 to 255', mean=None, std=None)
    part = dict(segmentation='segmentor', detection='detector', classification='classifier')[task]
    told = dict(part=part, task=task, classes=CLASSES, outputs=list(outputs), input=entry)
    told.update(palette=[[0, 0, 0]] * 3, align_corners=False, resize=[], mask_threshold=0.5)
    told.update(about)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 20)], ir_version=10)
    helper.set_model_props(model, dict(mmlk=json.dumps(told)))
    onnx.save(model, path)
    return path


def segmentor(path, **about):
    weight = np.zeros((3, 3, 1, 1), np.float32)
    weight[:, 0, 0, 0] = SLOPES
    node = helper.make_node('Conv', ['image', 'weight', 'bias'], ['logits'])
    constants = [('weight', weight), ('bias', OFFSETS)]
    return write_onnx(
        path, 'segmentation', [node], dict(logits=TensorProto.FLOAT), constants, **about
    )


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Tests a file on a small set whose pictures are 64 x 64; returns what was measured.

    The pipeline of the config halves the pictures, which the files here do not say.
    """
    data = write_dataset(tmp_path / 'data')
    config = write_config(tmp_path, data)
    steps = '[pipeline[0], dict(type="Resize", scale=(32, 32)), *pipeline[1:]]'
    changes = f'metainfo=dict(classes={CLASSES}), pipeline={steps}'
    config.write_text(f'{config.read_text()}\ntest_dataloader["dataset"].update({changes})\n')
    calls = dict(monkeypatch=monkeypatch, cwd=tmp_path)

    def test(file, *flags):
        call_tool('test.py', 'tiny.py', str(file), '--work-dir', 'out', *flags, **calls)
        return json.loads(next((tmp_path / 'out').glob('*/*.json')).read_text())

    return test


def expected_miou(data):
    """By counting, of labels that are the annotations less one; zero is no class."""
    matrix = np.zeros((3, 3), int)
    for file in sorted((data / 'images/validation').iterdir()):
        red = np.asarray(Image.open(file)).astype(np.float32)[..., :1]
        found = (red * SLOPES + OFFSETS).argmax(-1)
        truth = np.asarray(Image.open(data / f'annotations/validation/{file.stem}.png')) - 1
        np.add.at(matrix, (truth[truth < 3], found[truth < 3]), 1)
    hit = matrix.diagonal()
    return 100 * (hit / (matrix.sum(0) + matrix.sum(1) - hit)).mean()


def test_metric_of_a_file_is_that_of_its_labels(run, tmp_path):
    found = run(segmentor(tmp_path / 'model.onnx'), '--out', 'labels')
    assert found['mIoU'] == pytest.approx(expected_miou(tmp_path / 'data'), abs=0.01)
    assert 20 < found['mIoU'] < 99
    assert len(list((tmp_path / 'labels').iterdir())) == 2


def test_file_prepares_pictures_as_it_says(run, tmp_path):
    step = dict(type='Resize', scale=[32, 32], keep_ratio=False)
    found = run(segmentor(tmp_path / 'model.onnx', resize=[step]))
    assert 20 < found['mIoU'] != pytest.approx(expected_miou(tmp_path / 'data'), abs=0.1)


@pytest.mark.parametrize(
    'words, message',
    [
        (['absent.onnx'], "there is no file 'absent.onnx'"),
        (['model.onnx', '--tta'], 'exported model, which takes no --tta'),
        (['model.onnx', '--launcher', 'pytorch'], 'is tested by one process'),
        (['other.onnx'], 'other.onnx is a file for classification, the config is for segmentation'),
        (['empty.onnx'], 'empty.onnx cannot be read'),
        (['four.onnx'], 'tells 4 classes apart, and the test data have 3'),
    ],
)
def test_bad_input_is_one_message(words, message, run, tmp_path):
    segmentor(tmp_path / 'model.onnx')
    segmentor(tmp_path / 'four.onnx', classes=(*CLASSES, 'd'))
    scores = helper.make_node('GlobalAveragePool', ['image'], ['probabilities'])
    outputs = dict(probabilities=TensorProto.FLOAT)
    write_onnx(tmp_path / 'other.onnx', 'classification', [scores], outputs)
    (tmp_path / 'empty.onnx').write_bytes(b'')
    with pytest.raises(SystemExit, match=f'error: .*{message}'):
        run(*words)


def test_objects_are_those_of_the_file(tmp_path):
    structures = pytest.importorskip('mmdet.structures')
    values = dict(
        boxes=np.float32([[2, 4, 12, 20]]),
        scores=np.float32([0.75]),
        labels=np.int64([2]),
        masks=np.ones((1, 28, 28), np.float32),
    )
    nodes = [
        helper.make_node('Constant', [], [name], value=numpy_helper.from_array(value))
        for name, value in values.items()
    ]
    kinds = {name: helper.np_dtype_to_tensor_dtype(value.dtype) for name, value in values.items()}
    file = write_onnx(tmp_path / 'model.onnx', 'detection', nodes, kinds)
    pictures = [torch.zeros(3, 30, 40, dtype=torch.uint8), torch.ones(1, 30, 40).byte()]
    samples = [structures.DetDataSample() for _ in pictures]
    step = ExportedNetwork(str(file)).test_step
    for sample in step(dict(inputs=pictures, data_samples=samples)):
        found = sample.pred_instances
        assert found.bboxes.tolist() == values['boxes'].tolist()
        assert found.scores.tolist() == [0.75] and found.labels.tolist() == [2]
        assert found.masks.shape == (1, 30, 40) and found.masks.sum() == 160


def test_scores_are_those_of_the_file(tmp_path):
    structures = pytest.importorskip('mmpretrain.structures')
    nodes = [
        helper.make_node('GlobalAveragePool', ['image'], ['means']),
        helper.make_node('Flatten', ['means'], ['logits']),
    ]
    outputs = dict(logits=TensorProto.FLOAT)
    file = write_onnx(tmp_path / 'model.onnx', 'classification', nodes, outputs)
    blue_green_red = torch.tensor([3, 1, 2], dtype=torch.uint8)[:, None, None].expand(3, 8, 9)
    samples = [structures.DataSample()]
    step = ExportedNetwork(str(file)).test_step
    (sample,) = step(dict(inputs=[blue_green_red], data_samples=samples))
    assert sample.pred_label.item() == 2
    assert torch.allclose(sample.pred_score, torch.tensor([2.0, 1.0, 3.0]).softmax(0))
