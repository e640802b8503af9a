"""Exported files: what they compute, what they say about themselves, and what is refused."""

import json
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from PIL import Image
from torch import nn

import mmlk
from mmlk.cli import program
from mmlk.export import compare, smaller, write
from mmlk.export.describe import describe, size_steps
from mmlk.export.graph import Graph, MatrixPool, WholeUpsample
from mmlk.inference.exported import resize
from tests.commands.conftest import CLASSES
from tests.commands.export_table import DESCRIBED, METHODS, SIZES, segmentor


@pytest.mark.slow
@pytest.mark.parametrize('suffix', write.SUFFIXES)
@pytest.mark.parametrize('part', ['backbone', 'segmentor'])
@pytest.mark.parametrize('family, method', METHODS.items())
def test_file_computes_what_the_unfolded_network_does(family, method, part, suffix, tmp_path):
    """At sizes and batches other than those that the export itself looks at."""
    network, cfg = segmentor(method, family)
    graph = Graph(network, cfg, part).eval()
    out = tmp_path / f'model{suffix}'
    deviation = write.export_model(graph, out, describe(graph, cfg, DESCRIBED, None), sizes=SIZES)
    assert 0 < deviation <= 1e-5
    run, _ = write.runner(out)
    for shape in ((1, 3, 96, 256), (3, 3, 197, 133)):
        image = torch.randn(shape)
        with torch.no_grad():
            expected = write._flat(graph(image))
        for got, want in zip(run(image), expected, strict=True):
            assert got.shape == want.shape
            assert (got - want).abs().max() <= compare.TOLERANCE * want.abs().max()
    assert [path.name for path in tmp_path.iterdir()] == [out.name], 'more than one file'


@pytest.mark.slow
def test_command_writes_a_file_that_predicts_without_torch_and_mmlk(trained, photos, tmp_path):
    out = tmp_path / 'model.onnx'
    words = ['export', str(trained / 'iter_4.pth'), '--out', str(out)]
    assert program.main([*words, '--normalize', '--output', 'labels']) == 0
    alone = tmp_path / 'alone.py'
    alone.write_text(
        'import sys, json, numpy as np, onnxruntime\n'
        'from PIL import Image\n'
        'session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])\n'
        'about = json.loads(session.get_modelmeta().custom_metadata_map["mmlk"])\n'
        'pixels = np.asarray(Image.open(sys.argv[2]).convert("RGB"), np.float32)\n'
        'labels, = session.run(["labels"], {"image": pixels.transpose(2, 0, 1)[None]})\n'
        'np.save(sys.argv[3], labels[0])\n'
        'print(json.dumps(about["classes"]))\n'
        'assert not {"torch", "mmlk", "mmengine"} & set(sys.modules)\n'
    )
    expected = mmlk.load_model(trained / 'iter_4.pth', device='cpu').predict(photos / 'c.png')[0]
    done = subprocess.run(
        [
            sys.executable,
            '-I',
            str(alone),
            str(out),
            str(photos / 'c.png'),
            str(tmp_path / 'labels'),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert tuple(json.loads(done.stdout)) == CLASSES
    assert (np.load(tmp_path / 'labels.npy') == expected.labels).mean() >= 0.999
    inputs = onnx.load(out).graph.input
    assert [axis.dim_param or axis.dim_value for axis in inputs[0].type.tensor_type.shape.dim] == [
        'batch',
        3,
        'height',
        'width',
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    'flags',
    [
        [],
        ['--normalize', '--output', 'probabilities'],
        ['--output', 'labels'],
        ['--shape', '48', '64'],
    ],
)
def test_exported_file_predicts_what_the_checkpoint_does(flags, trained, photos, tmp_path):
    out = tmp_path / 'model.pt2'
    assert program.main(['export', str(trained / 'iter_4.pth'), '--out', str(out), *flags]) == 0
    original = mmlk.load_model(trained / 'iter_4.pth', device='cpu')
    exported = mmlk.load_model(out, device='cpu')
    assert exported.classes == CLASSES and exported.palette == original.palette
    source = [photos / f'{name}.png' for name in ('a', 'b', *(() if '--shape' in flags else 'c'))]
    pairs = zip(original.predict(source), exported.predict(source, batch_size=2), strict=True)
    assert all((ours.labels == theirs.labels).mean() >= 0.999 for ours, theirs in pairs)


@pytest.fixture
def graph(trained):
    from mmlk.inference.checkpointed import network_and_classes

    network, cfg, _ = network_and_classes(None, str(trained / 'iter_4.pth'))
    return Graph(network, cfg).eval(), cfg


def test_wrong_result_leaves_nothing(graph, tmp_path, monkeypatch):
    graph, cfg = graph
    fold = graph.backbone.switch_to_deploy

    def spoilt(self):
        fold.__func__(self)
        next(self.parameters()).data.mul_(1.01)
        return self

    monkeypatch.setattr(type(graph.backbone), 'switch_to_deploy', spoilt)
    out = tmp_path / 'model.pt2'
    description = describe(graph, cfg, DESCRIBED, (64, 64))
    with pytest.raises(RuntimeError, match='differ by .* nothing was written'):
        write.export_model(graph, out, description, shape=(64, 64))
    assert list(tmp_path.iterdir()) == []


def test_operator_of_this_package_is_refused(graph, tmp_path, monkeypatch):
    graph, cfg = graph

    class Foreign:
        class graph:  # noqa: N801
            nodes = [type('Node', (), dict(target='mmlk.depthwise.default'))]

    monkeypatch.setattr(torch.export, 'export', lambda *_, **__: Foreign)
    with pytest.raises(RuntimeError, match='mmlk.depthwise.default would need this package'):
        write.export_model(graph, tmp_path / 'model.pt2', {}, shape=(64, 64))
    assert list(tmp_path.iterdir()) == []


def test_graph_stays_as_it_is(graph):
    graph, _ = graph
    folded = graph.folded()
    assert folded.backbone.deployed and not graph.backbone.deployed


def test_normalisation_inside_is_the_one_of_the_preprocessor(graph, trained):
    graph, cfg = graph
    image = torch.randint(0, 256, (2, 3, 64, 48)).float()
    inside = Graph(graph, cfg, normalize=True).eval()
    prepared = mmlk.load_model(trained / 'iter_4.pth', device='cpu').module.data_preprocessor
    bgr = dict(inputs=[one.flip(0).byte() for one in image], data_samples=None)
    with torch.no_grad():
        assert torch.allclose(inside(image), graph(prepared(bgr)['inputs']), atol=1e-5)


def test_network_that_wants_bgr_gets_it(graph):
    graph, cfg = graph
    cfg = Config(cfg.to_dict())
    cfg.model.data_preprocessor.update(bgr_to_rgb=False, mean=[1.0, 2.0, 3.0])
    swapped = Graph(graph, cfg, normalize=True).eval()
    image = torch.rand(1, 3, 64, 64) * 255
    mean = torch.tensor([1.0, 2.0, 3.0]).reshape(1, 3, 1, 1)
    with torch.no_grad():
        assert torch.allclose(swapped(image), graph((image.flip(1) - mean) / 64), atol=1e-5)
    assert describe(swapped, cfg, DESCRIBED, None)['input']['mean'] == [3.0, 2.0, 1.0]


@pytest.mark.parametrize('size', [(1, 1), (2, 3), (6, 6)])
@pytest.mark.parametrize('shape', [(4, 5), (16, 16), (7, 1), (6, 23)])
def test_pooling_by_products_is_adaptive_pooling(size, shape):
    x = torch.randn(2, 3, *shape)
    expected = nn.AdaptiveAvgPool2d(size)(x.double())
    assert (MatrixPool(size)(x) - expected).abs().max() < 1e-6


@pytest.mark.parametrize('align', [False, True])
def test_upsampling_by_a_whole_factor_is_that_of_mmseg(align):
    from mmseg.models.utils import Upsample

    x = torch.randn(2, 3, 5, 7)
    theirs = Upsample(scale_factor=2, mode='bilinear', align_corners=align)
    assert torch.equal(WholeUpsample(theirs)(x), theirs(x))


@pytest.mark.parametrize('shape', [(37, 61), (200, 100), (64, 64)])
@pytest.mark.parametrize(
    'steps',
    [
        [dict(type='Resize', scale=(2048, 512), keep_ratio=True)],
        [dict(type='Resize', scale=(96, 48), keep_ratio=False)],
        [dict(type='Resize', scale_factor=2 / 3, keep_ratio=True)],
        [
            dict(type='Resize', scale=(128, 64), keep_ratio=True),
            dict(type='ResizeToMultiple', size_divisor=32),
        ],
    ],
)
def test_pictures_are_resized_as_the_pipeline_does(shape, steps):
    from mmengine.dataset import Compose

    image = np.random.RandomState(0).randint(0, 255, (*shape, 3)).astype(np.uint8)
    with DefaultScope.overwrite_default_scope('mmseg'):
        expected = Compose([dict(step) for step in steps])(dict(img=image, img_shape=shape))['img']
    dataset = dict(pipeline=[dict(type='LoadImageFromFile'), *steps, dict(type='PackSegInputs')])
    described = size_steps(Config(dict(test_dataloader=dict(dataset=dataset))))
    assert np.array_equal(resize(image, json.loads(json.dumps(described))), expected)


def test_step_that_cannot_be_described_is_refused():
    dataset = dict(pipeline=[dict(type='Pad', size=(8, 8))])
    with pytest.raises(ValueError, match='a step Pad, which'):
        size_steps(Config(dict(test_dataloader=dict(dataset=dataset))))


@pytest.mark.parametrize(
    'words, message',
    [
        (['--out', 'model.bin'], 'must end in .onnx or .pt2'),
        (['--out', 'iter_4.pth/model.pt2'], 'is no folder'),
        (['x.pth', '--out', 'model.pt2', '--random'], '--random takes no checkpoint'),
        (['--out', 'model.pt2', '--shape', '16', '16'], 'smaller than 32 x 32'),
        (['--out', 'model.pt2', '--dtype', 'fp16'], '--dtype fp16 is for .onnx files'),
        (['--out', 'model.onnx', '--dtype', 'int8'], 'int8 needs --calibrate FOLDER'),
        (['--out', 'model.onnx', '--calibrate', '.'], '--calibrate belongs to --dtype'),
        (
            ['--out', 'model.onnx', '--dtype', 'int8', '--calibrate', 'absent'],
            '--calibrate absent is no folder with pictures',
        ),
        (
            ['--out', 'model.onnx', '--part', 'backbone', '--output', 'labels'],
            '--output labels is for segmentors and classifiers, not a backbone',
        ),
        (['--out', 'model.onnx', '--part', 'detector'], 'is no detector of backbone, neck'),
        (['--out', 'model.onnx', '--part', 'classifier'], 'is no classifier of backbone and head'),
    ],
)
def test_bad_input_is_one_message_and_no_file(words, message, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'iter_4.pth').write_bytes((trained / 'iter_4.pth').read_bytes())
    model = str(trained / 'tiny.py') if '--random' in words else 'iter_4.pth'
    with pytest.raises(SystemExit, match=f'^mmlk export: error: (.|\n)*{message}'):
        program.main(['export', model, *words])
    assert [path.name for path in tmp_path.iterdir()] == ['iter_4.pth']


def test_onnx_without_its_packages_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(write, 'find_spec', lambda name: None)
    with pytest.raises(ValueError, match='pip install onnx onnxscript onnxruntime'):
        write.check_target(tmp_path / 'model.onnx')


def test_foreign_file_is_refused(tmp_path):
    x = onnx.helper.make_tensor_value_info('x', onnx.TensorProto.FLOAT, [1])
    node = onnx.helper.make_node('Identity', ['x'], ['y'])
    y = onnx.helper.make_tensor_value_info('y', onnx.TensorProto.FLOAT, [1])
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], 'g', [x], [y]),
        opset_imports=[onnx.helper.make_opsetid('', 18)],
        ir_version=10,
    )
    onnx.save(model, tmp_path / 'foreign.onnx')
    assert onnxruntime.InferenceSession(tmp_path / 'foreign.onnx')
    with pytest.raises(ValueError, match='was not written by mmlk export'):
        mmlk.load_model(tmp_path / 'foreign.onnx', device='cpu')


def test_picture_of_a_prediction_is_one(trained, photos):
    """The overlay shows something: it differs from the image, and the legend is below."""
    prediction = mmlk.load_model(trained / 'iter_4.pth', device='cpu').predict(photos / 'a.png')[0]
    drawn = np.asarray(prediction.picture())
    assert drawn.shape[0] > 48
    assert not np.array_equal(drawn[:48, :64], np.asarray(Image.open(photos / 'a.png')))


@pytest.fixture(scope='module')
def onnx_file(trained):
    """The whole segmentor with its normalisation, as logits."""
    out = trained / 'whole.onnx'
    with DefaultScope.overwrite_default_scope('mmengine'):
        words = ['export', str(trained / 'iter_4.pth'), '--out', str(out), '--normalize']
        assert program.main(words) == 0
    return out


@pytest.mark.slow
def test_openvino_computes_what_onnx_runtime_does(onnx_file):
    compiled = openvino.Core().compile_model(
        str(onnx_file), 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'}
    )
    run, _ = write.runner(onnx_file)
    for shape in ((1, 3, 64, 96), (2, 3, 75, 51)):
        image = torch.rand(shape) * 255
        found = torch.from_numpy(compiled([image.numpy()])[0].copy())
        assert compare.maps([found], run(image), onnx_file) <= compare.TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize('dtype, bound', [('fp16', 1e-2), ('int8', 0.2)])
def test_smaller_numbers_change_little(dtype, bound, onnx_file, tmp_path):
    """The file is smaller, still open in size and batch, and described; its input is float32."""
    out = tmp_path / 'small.onnx'
    pictures = [torch.rand(1, 3, *size) * 255 for size in ((64, 96), (75, 51))]
    worst, equal = smaller.write_smaller(onnx_file, out, dtype, pictures)
    assert 0 < worst < bound and 0.9 < equal <= 1
    types = {tensor.data_type for tensor in onnx.load(out).graph.initializer}
    expected = dict(fp16=onnx.TensorProto.FLOAT16, int8=onnx.TensorProto.INT8)[dtype]
    assert expected in types
    run, about = write.runner(out)
    assert about['dtype'] == dtype and about['classes'] == list(CLASSES)
    image = torch.rand(2, 3, 80, 64) * 255
    before, after = write.runner(onnx_file)[0](image)[0], run(image)[0]
    assert (after - before).abs().max() < bound * before.abs().max()
    assert [path.name for path in tmp_path.iterdir()] == ['small.onnx']


@pytest.mark.slow
def test_command_calibrates_on_a_folder(trained, photos, tmp_path, capsys):
    (photos / 'broken.jpg').unlink()
    out = tmp_path / 'small.onnx'
    words = ['export', str(trained / 'iter_4.pth'), '--out', str(out), '--output', 'labels']
    assert program.main([*words, '--dtype', 'int8', '--calibrate', str(photos)]) == 0
    printed = capsys.readouterr().out
    assert 'in int8' in printed and '4 picture(s)' in printed and 'keep their label' in printed
    labels = mmlk.load_model(out, device='cpu').predict(photos / 'a.png')[0].labels
    expected = mmlk.load_model(trained / 'iter_4.pth', device='cpu').predict(photos / 'a.png')[0]
    assert (labels == expected.labels).mean() > 0.9
