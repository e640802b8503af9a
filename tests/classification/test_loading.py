"""What loads into a classifier, what is said about it, and what is refused."""

import copy
import logging

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.runner.checkpoint import load_checkpoint

from mmlk.checkpoints.classifiers import split_classifier
from mmlk.checkpoints.load import load_into
from mmlk.cli.loading import require_coverage
from tests.checkpoints.cases import classifier as shapes_of
from tests.classification.models import RECORDS, classifier, published
from tests.golden_weights import golden_input

RECORD = 'inceptionnext/atto'
RECNEXT = 'recnext/recnext_m0'


def tensors(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def whole(record):
    """A published file as this package's classifier saves it."""
    state = published(record)
    split = split_classifier(RECORDS[record][0], state)
    return {split[key]: value for key, value in state.items()}


@pytest.mark.parametrize('record', RECORDS)
def test_every_published_key_finds_its_place(record):
    """By names and shapes alone: an author's file covers the whole model and nothing is left."""
    with torch.device('meta'):
        model = classifier(*RECORDS[record])
    state = shapes_of(record)
    for wrapper in ('', 'module.', 'module._orig_mod.'):
        split = split_classifier(RECORDS[record][0], [wrapper + key for key in state])
        named = {split[wrapper + key]: tuple(value.shape) for key, value in state.items()}
        assert named == {key: tuple(v.shape) for key, v in model.state_dict().items()}
    own = list(model.state_dict())
    assert split_classifier(RECORDS[record][0], own) == {key: key for key in own}


def forms(record):
    """The files in which a classifier comes: bare, a trainer's, DDP's, MMEngine's."""
    state = published(record)
    return {
        'bare': state,
        'trainer': {'model': state, 'optimizer': {'state': {}}, 'epoch': 299},
        'timm trainer': {'state_dict': {f'module.{k}': v for k, v in state.items()}, 'epoch': 9},
        'ours': {'state_dict': whole(record), 'meta': {'epoch': 1}},
    }


@pytest.mark.parametrize('form', ['bare', 'trainer', 'timm trainer', 'ours'])
@pytest.mark.parametrize('record', [RECORD, RECNEXT])
def test_values_arrive_through_mmengine_from_every_form(tmp_path, record, form):
    torch.save(forms(record)[form], tmp_path / 'a.pth')
    model = classifier(*RECORDS[record])
    load_checkpoint(model, str(tmp_path / 'a.pth'), map_location='cpu', strict=True)
    want = whole(record)
    for key, value in model.state_dict().items():
        assert torch.equal(value, want[key]), key


def test_callers_dict_is_left_as_it_is():
    given = published(RECORD)
    keys = list(given)
    classifier(*RECORDS[RECORD]).load_state_dict(given)
    assert list(given) == keys


@pytest.mark.parametrize(
    'record', [RECORD, RECNEXT, pytest.param('slak/slak_tiny', marks=pytest.mark.slow)]
)
def test_another_class_count_leaves_the_class_layers_new(record):
    model = classifier(*RECORDS[record], num_classes=7)
    before = tensors(model.head)
    missing, unexpected = model.load_state_dict(published(record), strict=False)
    layers = model.head.class_layers
    assert sorted(missing) == sorted(f'head.{n}.{p}' for n in layers for p in ('weight', 'bias'))
    assert not unexpected
    want = whole(record)
    for key, value in model.head.state_dict().items():
        fresh = key.rpartition('.')[0] in layers
        assert torch.equal(value, before[key] if fresh else want[f'head.{key}']), key


@pytest.fixture
def said(caplog):
    """What loading writes into the log of a run, so far."""
    logger = MMLogger.get_instance('classes', logger_name='classes')
    logger.addHandler(caplog.handler)
    yield lambda: [
        record.getMessage() for record in caplog.records if record.levelno == logging.WARNING
    ]
    logger.removeHandler(caplog.handler)
    MMLogger._instance_dict.pop('classes', None)


def test_message_names_both_class_counts(said):
    classifier(*RECORDS[RECORD], num_classes=7).load_state_dict(published(RECORD), strict=False)
    assert any(
        'for 1000 classes, the module for 7: fc2.weight, fc2.bias keep their initial values' in line
        for line in said()
    )


def test_refusal_is_not_preceded_by_what_would_have_been_kept(said):
    model = classifier(*RECORDS[RECORD], num_classes=7)
    require_coverage(model)
    with pytest.raises(RuntimeError, match='2 tensors have other shapes'):
        model.load_state_dict(published(RECORD), strict=False)
    assert not said()


def dense():
    trunk = {k: v for k, v in whole(RECORD).items() if k.startswith('backbone.')}
    return {**trunk, 'decode_head.conv_seg.weight': torch.zeros(2), 'neck.a.weight': torch.ones(1)}


BAD = {
    'a segmentor': (dense, 'holds backbone, decode_head, neck and no classifier.*init_cfg'),
    'a backbone alone': (
        lambda: {k: v for k, v in published(RECORD).items() if not k.startswith('head.')},
        'no such head.*init_cfg',
    ),
    'another family': (lambda: published(RECNEXT), 'looks like RecNeXt m0, not like InceptionNeXt'),
    'another variant': (lambda: dict(shapes_of('inceptionnext/tiny')), "arch='tiny'"),
    'half a head': (
        lambda: {k: v for k, v in published(RECORD).items() if k != 'head.norm.bias'},
        'norm.bias is missing',
    ),
    'a narrower head': (
        lambda: {**published(RECORD), 'head.fc1.weight': torch.zeros(9, 320)},
        r'fc1.weight is \(9, 320\) in the file, \(960, 320\) in the module',
    ),
    'class layers of another input': (
        lambda: {**published(RECORD), 'head.fc2.weight': torch.zeros(7, 3)},
        r'fc2.weight is \(7, 3\) in the file',
    ),
}


@pytest.mark.parametrize('what', BAD)
def test_unfit_files_are_refused_with_a_remedy(what):
    make, message = BAD[what]
    model = classifier(*RECORDS[RECORD])
    with pytest.raises(ValueError, match=message):
        model.load_state_dict(make(), strict=False)


def test_classifier_starts_a_dense_backbone_with_its_values(tmp_path):
    from mmlk.backbones import InceptionNeXt

    torch.save({'state_dict': whole(RECORD), 'meta': {}}, tmp_path / 'epoch_1.pth')
    backbone = InceptionNeXt('atto')
    report = load_into(backbone, 'inceptionnext', str(tmp_path / 'epoch_1.pth'), prefix='backbone.')
    assert len(report.matched) == 220 and not report.missing
    x = golden_input((1, 3, 64, 64))
    model = classifier(*RECORDS[RECORD]).eval()
    model.load_state_dict(whole(RECORD))
    raw = InceptionNeXt('atto', output_norm=False).eval()
    load_into(raw, 'inceptionnext', str(tmp_path / 'epoch_1.pth'), prefix='backbone.')
    with torch.no_grad():
        assert torch.equal(raw(x)[-1], model.backbone(x)[-1])
    # Without a prefix the network is found by its own keys.
    found = load_into(InceptionNeXt('atto'), 'inceptionnext', str(tmp_path / 'epoch_1.pth'))
    assert len(found.matched) == 220 and not found.missing


def test_a_copy_and_a_resumed_run_load_their_own_states():
    model = classifier(*RECORDS[RECORD], num_classes=3)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1)
    model.load_state_dict(twin.state_dict(), strict=True)
    for key, value in model.state_dict().items():
        assert torch.equal(value, twin.state_dict()[key]), key
