"""Classifiers in use: prediction in Python and on disk, published and exported files, bad input."""

import csv
import functools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope
from PIL import Image
from torch import nn

import mmlk
from mmlk.checkpoints import zoo
from mmlk.cli import program
from mmlk.export import compare, write
from mmlk.export.describe import describe, size_steps
from mmlk.export.graph import Graph, part_of
from mmlk.inference import names
from mmlk.inference.exported import resize
from mmlk.inference.prediction import Prediction
from mmlk.models import names as networks
from tests.cases import MICRO_ARCHS
from tests.classification.models import FAMILIES, classifier, published

api = pytest.importorskip('mmpretrain')
CLASSES = ('cup', 'tree', 'road', 'boat', 'cat', 'sun')
CONFIG = """
_base_ = 'mmlk::inceptionnext_a_in1k.py'
model = dict(
    backbone=dict(
        _delete_=True, type='mmlk.InceptionNeXt', out_indices=(3,), output_norm=False,
        arch=dict(depths=(1, 1, 1, 1), dims=(8, 16, 16, 16))),
    head=dict(in_channels=16, num_classes=6))
data_preprocessor = dict(num_classes=6)
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='ResizeEdge', scale=72, edge='short', backend='pillow', interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=64),
    dict(type='PackInputs')]
test_dataloader = dict(dataset=dict(
    _delete_=True, type='CustomDataset', data_root='absent', data_prefix='val',
    pipeline=test_pipeline))
"""


def uneven(network):
    """Weights whose folding shows and whose scores differ from picture to picture."""
    for name, value in [*network.named_parameters(), *network.named_buffers()]:
        if value.ndim == 1 and value.is_floating_point():
            nn.init.uniform_(value, 0.5, 1.5)
        elif value.ndim > 1 and not name.endswith('.P'):
            nn.init.kaiming_normal_(value)
    return network.eval()


@pytest.fixture(scope='module')
def trained_classifier(tmp_path_factory):
    """Folder with ``small.py`` and ``epoch_1.pth``, the form in which MMEngine's runner saves."""
    folder = tmp_path_factory.mktemp('classifier')
    (folder / 'small.py').write_text(CONFIG)
    torch.manual_seed(0)
    network = uneven(api.get_model(str(folder / 'small.py')))
    cfg = Config.fromfile(str(folder / 'small.py'))
    meta = dict(dataset_meta=dict(classes=CLASSES), cfg=cfg.pretty_text, epoch=1, iter=4)
    content = dict(state_dict=network.state_dict(), meta=meta, optimizer=dict(state={}))
    torch.save(content, folder / 'epoch_1.pth')
    (folder / 'last_checkpoint').write_text(str(folder / 'epoch_1.pth'))
    return folder


@pytest.fixture(scope='module')
def model(trained_classifier):
    folder = trained_classifier
    return mmlk.load_model(folder / 'small.py', folder / 'epoch_1.pth', device='cpu')


def inferencer(name, weights):
    """MMPretrain's own way to predict, by the name or the path of a config."""
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        made = api.ImageClassificationInferencer(str(name), pretrained=str(weights), device='cpu')
    return lambda picture: _in_scope(made, picture)


def _in_scope(made, picture):
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return made(str(picture))[0]


def test_scores_are_those_of_mmpretrain(trained_classifier, photos, model):
    """MMPretrain's own inference, from the same two files."""
    theirs = inferencer(trained_classifier / 'small.py', trained_classifier / 'epoch_1.pth')
    assert model.task == 'classification' and model.classes == CLASSES
    best = set()
    for prediction in model.predict(photos, batch_size=3, skipped=[]):
        expected = theirs(photos / f'{prediction.name}.png')
        assert np.allclose(prediction.class_scores, expected['pred_scores'], atol=1e-6)
        first = prediction.top(1)[0]
        assert (first['index'], first['name']) == (expected['pred_label'], expected['pred_class'])
        assert first['score'] == pytest.approx(expected['pred_score'], abs=1e-5)
        best.add(tuple(entry['index'] for entry in prediction.top()))
    assert len(best) > 1, 'the test would pass with constant scores'


def scored(scores):
    image = np.full((20, 30, 3), 128, np.uint8)
    return Prediction('x', image, CLASSES, [], class_scores=np.array(scores, np.float32))


def test_likeliest_classes_come_first_and_ties_keep_their_order():
    found = scored([0.1, 0.3, 0.05, 0.1, 0.4, 0.05])
    assert [entry['name'] for entry in found.top(4)] == ['cat', 'tree', 'cup', 'boat']
    assert found.top(99)[-1] == dict(index=5, name='sun', score=0.05)
    with pytest.raises(ValueError, match='0 classes'):
        found.top(0)
    with pytest.raises(ValueError, match='no scores of the whole picture'):
        Prediction('x', found.image, CLASSES, [], labels=np.zeros((20, 30), int)).top()
    with pytest.raises(ValueError, match='no label map'):
        found.label_image()


def test_picture_shows_the_image_and_bars_as_long_as_the_scores():
    drawn = np.asarray(scored([0.5, 0.25, 0.25, 0, 0, 0]).picture())
    assert np.array_equal(drawn[:20, :30], np.full((20, 30, 3), 128, np.uint8))
    below = drawn[20:].astype(int)
    bars = ((below[..., 2] - below[..., 0]) > 50).sum(1)
    assert len(bars) > 50 and bars.max() == pytest.approx(0.5 * drawn.shape[1], abs=2)


def test_command_writes_pictures_and_tables(trained_classifier, photos, tmp_path, capsys):
    out = tmp_path / 'out'
    words = ['predict', str(trained_classifier / 'epoch_1.pth'), str(photos), '--out', str(out)]
    words += ['--batch-size', '2', '--device', 'cpu', '--top-k', '3']
    assert program.main(words) == 3
    assert 'broken.jpg: cannot be decoded' in capsys.readouterr().err
    found = sorted(p.relative_to(out).as_posix() for p in out.rglob('*') if p.is_file())
    stems = ['a', 'b', 'c', 'more/d']
    assert found == [*(f'pictures/{s}.jpg' for s in stems), 'predictions.csv', 'predictions.json']
    entries = json.loads((out / 'predictions.json').read_text())
    assert [entry['picture'] for entry in entries] == stems
    model = mmlk.load_model(trained_classifier / 'epoch_1.pth', device='cpu')
    assert entries[2]['classes'] == model.predict(photos / 'c.png')[0].top(3)
    with open(out / 'predictions.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12 and [row['rank'] for row in rows[:4]] == ['1', '2', '3', '1']
    want = entries[3]['classes'][1]
    assert {key: str(value) for key, value in want.items()}.items() <= rows[10].items()


def test_published_file_predicts_alone_and_under_mmpretrain(trained_classifier, photos, tmp_path):
    words = ['publish', str(trained_classifier / 'last_checkpoint'), '--out', str(tmp_path)]
    assert program.main([*words, '--name', 'six', '--metric', 'top1=80']) == 0
    (file,) = tmp_path.glob('six-*.pth')
    ours = mmlk.load_model(file, device='cpu').predict(photos / 'a.png')[0]
    found = inferencer(trained_classifier / 'small.py', file)(photos / 'a.png')
    assert found['pred_class'] == ours.top(1)[0]['name']
    assert np.allclose(found['pred_scores'], ours.class_scores, atol=1e-6)


def test_authors_file_is_used_by_the_name_of_its_config(photos, tmp_path):
    torch.save(published('inceptionnext/atto'), tmp_path / 'atto.pth')
    prediction = mmlk.load_model('inceptionnext_a_in1k', tmp_path / 'atto.pth', 'cpu').predict(
        photos / 'a.png'
    )[0]
    expected = inferencer('inceptionnext_a_in1k', tmp_path / 'atto.pth')(photos / 'a.png')
    assert np.allclose(prediction.class_scores, expected['pred_scores'], atol=1e-6)
    assert prediction.top(1)[0]['name'] == expected['pred_class']


WITHOUT_CONFIGS = ('replknet', 'unireplknet')


@pytest.mark.slow
def test_every_published_classifier_is_found_with_its_config():
    weights, read = names.classifier_weights(), functools.cache(Config.fromfile)
    assert len(weights) > 40 and all(w.startswith(zoo.SCHEME) for w in weights.values())
    for name, file in weights.items():
        config, found = names.resolve(name, None)
        assert (Path(config).stem, found) == (name, file)
    for entry in zoo.ENTRIES.values():
        if entry.family in WITHOUT_CONFIGS:
            with pytest.raises(ValueError, match='no config of this package fits'):
                names.resolve(entry.name, None)
        elif entry.task == 'classification' and entry.arch is not None:
            cfg = read(names.resolve(entry.name, None)[0])
            assert cfg.model.backbone.arch == entry.arch
            assert ('384' in entry.data) == (cfg.test_pipeline[2]['crop_size'] == 384)
            distilled = cfg.model.type == 'mmlk.DistilledClassifier'
            assert distilled == (entry.data.endswith(', distill'))
    for name in mmlk.list_models(pretrained=True):
        variant, entry = networks.find(name)
        if variant.family in WITHOUT_CONFIGS:
            continue
        assert names.resolve(name, None) == names.resolve(entry.name, None)
    same = names.resolve('timm/inception_next_tiny.sail_in1k', None)
    assert Path(same[0]).stem == 'inceptionnext_t_in1k'
    with pytest.raises(ValueError, match='no config of this package fits convnext_l2s_tiny'):
        names.resolve('convnext_l2s_tiny', None)


@pytest.fixture
def graph(trained_classifier):
    from mmlk.inference.checkpointed import network_and_classes

    network, cfg, classes = network_and_classes(None, str(trained_classifier / 'epoch_1.pth'))
    return network, cfg, classes


@pytest.mark.slow
@pytest.mark.parametrize(('suffix', 'output'), [('.onnx', 'probabilities'), ('.pt2', 'logits')])
@pytest.mark.parametrize('family', [name for name in FAMILIES if name not in WITHOUT_CONFIGS])
@torch.no_grad()
def test_exported_file_computes_what_the_unfolded_classifier_does(
    family, output, suffix, graph, tmp_path
):
    """At sizes and batches other than those that the export itself looks at."""
    torch.manual_seed(0)
    network = uneven(classifier(family, MICRO_ARCHS[FAMILIES[family][0]], num_classes=6))
    scale = network(torch.randn(2, 3, 96, 96)).std()
    for name in network.head.class_layers:  # so that no probability is one
        for value in network.head.get_submodule(name).parameters():
            value /= 10 * scale
    assert part_of(network) == 'classifier'
    whole = Graph(network, graph[1], 'classifier', output=output).eval()
    out = tmp_path / f'model{suffix}'
    sizes = ((160, 192), (131, 227))
    deviation = write.export_model(whole, out, describe(whole, *graph[1:], None), sizes=sizes)
    assert 0 < deviation <= 1e-5
    run, description = write.runner(out)
    assert description['task'] == 'classification' and description['classes'] == list(CLASSES)
    assert not whole.backbone.deployed and not whole.head.deployed
    for shape in ((1, 3, 96, 256), (3, 3, 197, 133)):
        image = torch.randn(shape)
        want = network.head(network.backbone(image))
        want = want.softmax(1) if output == 'probabilities' else want
        assert output == 'logits' or want.max() < 0.98
        (got,) = run(image)
        assert got.shape == want.shape == (shape[0], 6)
        assert (got - want).abs().max() <= compare.TOLERANCE * want.abs().max()


@pytest.mark.slow
@pytest.mark.parametrize(
    'flags',
    [
        [],
        ['--normalize', '--output', 'probabilities'],
        ['--part', 'classifier', '--shape', '64', '64'],
    ],
)
@pytest.mark.parametrize('suffix', write.SUFFIXES)
def test_exported_file_predicts_what_the_checkpoint_does(
    suffix, flags, trained_classifier, photos, model, tmp_path, capsys
):
    out = tmp_path / f'model{suffix}'
    words = ['export', str(trained_classifier / 'epoch_1.pth'), '--out', str(out), *flags]
    assert program.main(words) == 0
    assert f'{out.name}: classifier for ' in capsys.readouterr().out
    exported = mmlk.load_model(out, device='cpu')
    assert exported.task == 'classification' and exported.classes == CLASSES
    source = [photos / f'{name}.png' for name in 'abc']
    pairs = zip(model.predict(source), exported.predict(source, batch_size=2), strict=True)
    for ours, theirs in pairs:
        assert np.allclose(ours.class_scores, theirs.class_scores, atol=1e-4)
    words = ['predict', str(out), str(photos / 'a.png'), '--out', str(tmp_path / 'out')]
    assert program.main(words) == 0
    assert (tmp_path / 'out/predictions.csv').is_file()


@pytest.mark.slow
def test_onnx_file_names_a_picture_without_torch_and_mmlk(
    trained_classifier, photos, model, tmp_path
):
    out = tmp_path / 'model.onnx'
    words = ['export', str(trained_classifier / 'epoch_1.pth'), '--out', str(out)]
    assert program.main([*words, '--normalize', '--output', 'labels']) == 0
    alone = tmp_path / 'alone.py'
    alone.write_text(
        'import sys, json, numpy as np, onnxruntime\n'
        'from PIL import Image\n'
        'session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])\n'
        'about = json.loads(session.get_modelmeta().custom_metadata_map["mmlk"])\n'
        'edge, crop = about["resize"]\n'
        'image = Image.open(sys.argv[2]).convert("RGB")\n'
        'factor = edge["scale"] / min(image.size)\n'
        'image = image.resize([int(side * factor) for side in image.size], Image.BICUBIC)\n'
        'left, top = [round((side - crop["crop_size"]) / 2) for side in image.size]\n'
        'image = image.crop((left, top, left + crop["crop_size"], top + crop["crop_size"]))\n'
        'pixels = np.asarray(image, np.float32).transpose(2, 0, 1)\n'
        'labels, = session.run(["labels"], {"image": np.stack([pixels, pixels])})\n'
        'print(about["classes"][labels[0]])\n'
        'assert not {"torch", "mmlk", "mmengine"} & set(sys.modules)\n'
    )
    words = [sys.executable, '-I', str(alone), str(out), str(photos / 'a.png')]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == model.predict(photos / 'a.png')[0].top(1)[0]['name']
    with pytest.raises(ValueError, match='the label alone and no scores; .* probabilities'):
        mmlk.load_model(out, device='cpu')


@torch.no_grad()
def test_normalisation_inside_is_the_one_of_the_preprocessor(graph):
    network, cfg, _ = graph
    image = torch.randint(0, 256, (2, 3, 64, 48)).float()
    inside = Graph(network, cfg, 'classifier', normalize=True).eval()
    bgr = dict(inputs=[one.flip(0).byte() for one in image], data_samples=None)
    want = network.head(network.backbone(network.data_preprocessor(bgr)['inputs']))
    assert torch.allclose(inside(image), want, atol=1e-5)


EDGES = [
    dict(type='ResizeEdge', scale=40, edge=edge, backend='pillow', interpolation=kind)
    for edge, kind in (('short', 'bicubic'), ('long', 'bilinear'), ('width', 'bicubic'))
]
EDGES += [
    dict(type='ResizeEdge', scale=48, edge='height', interpolation='bicubic'),
    dict(type='ResizeEdge', scale=33),
]


@pytest.mark.parametrize('shape', [(37, 61), (200, 100), (64, 64)])
@pytest.mark.parametrize('crop', [32, (24, 40)])
@pytest.mark.parametrize('edge', EDGES)
def test_pictures_are_resized_and_cropped_as_the_pipeline_does(edge, crop, shape):
    from mmengine.dataset import Compose

    image = np.random.RandomState(0).randint(0, 255, (*shape, 3)).astype(np.uint8)
    steps = [edge, dict(type='CenterCrop', crop_size=crop)]
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        expected = Compose([dict(step) for step in steps])(dict(img=image, img_shape=shape))['img']
    dataset = dict(pipeline=[dict(type='LoadImageFromFile'), *steps, dict(type='PackInputs')])
    described = size_steps(Config(dict(test_dataloader=dict(dataset=dataset))))
    assert np.array_equal(resize(image, json.loads(json.dumps(described))), expected)


def test_crop_with_other_settings_is_refused():
    dataset = dict(pipeline=[dict(type='CenterCrop', crop_size=8, auto_pad=True)])
    with pytest.raises(ValueError, match='a step CenterCrop, which'):
        size_steps(Config(dict(test_dataloader=dict(dataset=dataset))))


def rewritten(change):
    """The checkpoint after ``change``, a function of its content."""

    def make(trained, folder):
        content = torch.load(trained / 'epoch_1.pth', weights_only=False)
        change(content)
        torch.save(content, folder / 'changed.pth')
        return [str(folder / 'changed.pth')]

    return make


def with_config(config, checkpoint):
    return lambda trained, folder: [
        str(trained / config) if config.endswith('.py') else config,
        '--checkpoint',
        str(trained / checkpoint),
    ]


BAD = {
    'classes without names': (
        rewritten(lambda c: c['meta'].pop('dataset_meta')),
        'neither the checkpoint nor the config names the classes; set metainfo',
    ),
    'fewer names than classes': (
        rewritten(lambda c: c['meta'].update(dataset_meta=dict(classes=CLASSES[:4]))),
        'tells 6 classes apart.*name 4',
    ),
    'head of another class count': (
        rewritten(lambda c: [c['state_dict'].update({k: v[:3]}) for k, v in fc2(c)]),
        'does not fit .*other shapes, first head.fc2.weight: .3, 48. in the checkpoint, .6, 48.',
    ),
    'classifier given to a segmentor': (
        with_config('fpn_recnext_m0_ade20k_mini', 'epoch_1.pth'),
        'epoch_1.pth does not fit fpn_recnext|epoch_1.pth does not fit .*fpn_recnext',
    ),
    'augmentation that the config has not': (
        lambda trained, folder: [str(trained / 'epoch_1.pth'), '--tta'],
        'the config has no tta_model and no tta_pipeline',
    ),
}


def fc2(content):
    return [item for item in content['state_dict'].items() if item[0].startswith('head.fc2')]


@pytest.mark.parametrize('what', BAD)
def test_bad_input_is_one_message_and_no_output(
    what, trained_classifier, photos, tmp_path, monkeypatch
):
    make, message = BAD[what]
    model, *flags = make(trained_classifier, tmp_path)
    words = ['predict', model, str(photos / 'a.png'), '--out', str(tmp_path / 'out'), *flags]
    with pytest.raises(SystemExit, match=f'^mmlk predict: error: (.|\n)*({message})'):
        program.main([*words, '--device', 'cpu'])
    assert not (tmp_path / 'out').exists()


def test_segmentor_given_to_a_classifier_is_one_message(trained, trained_classifier, photos):
    words = ['predict', str(trained_classifier / 'small.py'), str(photos / 'a.png')]
    message = 'iter_4.pth does not fit .*small.py|holds backbone, decode_head and no classifier'
    with pytest.raises(SystemExit, match=f'^mmlk predict: error: (.|\n)*({message})'):
        program.main([*words, '--checkpoint', str(trained / 'iter_4.pth')])


def test_classifier_has_no_segmentor_to_export_and_the_reverse(
    trained, trained_classifier, tmp_path
):
    for folder, file, part, message in (
        (trained_classifier, 'epoch_1.pth', 'segmentor', 'is no segmentor with one decode head'),
        (trained, 'iter_4.pth', 'classifier', 'is no classifier of backbone and head'),
    ):
        words = ['export', str(folder / file), '--out', str(tmp_path / 'a.pt2'), '--part', part]
        with pytest.raises(SystemExit, match=f'^mmlk export: error: (.|\n)*{message}'):
            program.main(words)
    assert list(tmp_path.iterdir()) == []


def test_image_of_a_picture_is_the_picture(model, photos):
    prediction = model.predict(photos / 'a.png')[0]
    assert np.array_equal(prediction.image, np.asarray(Image.open(photos / 'a.png')))
    assert prediction.above(0.9) is prediction
