"""Exported files: what they compute, what they say about themselves, and what is refused."""

import json
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from PIL import Image
from torch import nn

import mmlk
from mmlk.cli import program
from mmlk.export import compare, write
from mmlk.export.describe import describe, size_steps
from mmlk.export.graph import Graph, MatrixPool, WholeUpsample
from mmlk.inference.exported import resize
from tests.cases import MICRO_ARCHS
from tests.commands.conftest import CLASSES, PALETTE

WIDTH = 8
DESCRIBED = dict(classes=CLASSES, palette=PALETTE)


def segmentor(method, backbone):
    """A config of UperNet or Semantic FPN with a micro backbone, and its network."""
    cfg = Config.fromfile(mmlk.config_path(f'_base_/models/{method}.py'))
    cfg.merge_from_dict(Config.fromfile(mmlk.config_path('_base_/datasets/ade20k.py'))._cfg_dict)
    trunk = dict(type=f'mmlk.{backbone}', arch=MICRO_ARCHS[backbone])
    trunk.update(output_norm=method == 'upernet')
    channels = list(MODELS.build(dict(trunk)).out_channels)
    cfg.model.backbone = trunk
    if method == 'upernet':
        cfg.model.decode_head.update(in_channels=channels, channels=WIDTH, num_classes=4)
    else:
        cfg.model.neck.update(in_channels=channels, out_channels=WIDTH)
        cfg.model.decode_head.update(in_channels=[WIDTH] * 4, channels=WIDTH, num_classes=4)
    cfg.model.auxiliary_head = None
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmseg'):
        from mmengine.model import revert_sync_batchnorm

        network = revert_sync_batchnorm(MODELS.build(cfg.model)).eval()
    for value in [*network.parameters(), *network.buffers()]:
        if value.ndim == 1 and value.is_floating_point():
            nn.init.uniform_(value, 0.5, 1.5)  # folding constants must show
    return network, cfg


METHODS = dict(
    InceptionNeXt='upernet', SLaK='upernet', DCLSConvNeXt='upernet', RecNeXt='semantic_fpn'
)


@pytest.mark.slow
@pytest.mark.parametrize('suffix', write.SUFFIXES)
@pytest.mark.parametrize('part', ['backbone', 'segmentor'])
@pytest.mark.parametrize('family, method', METHODS.items())
def test_file_computes_what_the_unfolded_network_does(family, method, part, suffix, tmp_path):
    """At sizes and batches other than those that the export itself looks at."""
    network, cfg = segmentor(method, family)
    graph = Graph(network, cfg, part).eval()
    out = tmp_path / f'model{suffix}'
    sizes = ((160, 192), (131, 227))
    deviation = write.export_model(graph, out, describe(graph, cfg, DESCRIBED, None), sizes=sizes)
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
