"""``tools/convert_checkpoint.py --to``: our files under the names of timm and the authors."""

from __future__ import annotations

import os

import pytest
import torch

from mmlk.backbones import InceptionNeXt
from mmlk.checkpoints.classifiers import join_classifier, split_classifier
from tests.cases import TOLERANCE, assert_close
from tests.checkpoints.cases import classifier as recorded
from tests.classification.models import RECORDS, classifier, published
from tests.golden_weights import golden_input, load_golden_weights

RECNEXT = 'recnext/recnext_m0'
CONTAINERS = dict(
    inceptionnext='state_dict',
    slak='model',
    dcls_convnext='model',
    recnext='model',
    replknet='model',
    unireplknet='model',
)


def read(path):
    return torch.load(path, weights_only=True)


def save(model, path):
    """As MMEngine's runner saves a model."""
    torch.save({'state_dict': model.state_dict(), 'meta': dict(epoch=1), 'optimizer': {}}, path)


def assert_same(got, want):
    assert got.keys() == want.keys()
    for key, value in want.items():
        assert torch.equal(got[key], value), key


@pytest.mark.parametrize('record', RECORDS)
def test_names_of_both_directions_are_inverse(record):
    family, names = RECORDS[record][0], list(recorded(record))
    split = split_classifier(family, names)
    joined = join_classifier(family, split.values())
    assert [joined[split[name]] for name in names] == names
    with pytest.raises(ValueError, match="'neck.a' is of no backbone"):
        join_classifier(family, ['neck.a'])


@pytest.mark.slow
@pytest.mark.parametrize('arch', ['atto', 'tiny'])
@torch.no_grad()
def test_timm_loads_the_classifier_and_gives_its_scores(convert, arch, tmp_path, capsys):
    timm = pytest.importorskip('timm')
    ours = load_golden_weights(classifier('inceptionnext', arch, num_classes=8)).eval()
    save(ours, tmp_path / 'epoch_1.pth')
    out = tmp_path / 'timm.pth'
    assert convert(tmp_path / 'epoch_1.pth', out, '--to', 'timm') == 0
    assert 'head for 8 classes' in capsys.readouterr().out
    theirs = timm.create_model(f'inception_next_{arch}', num_classes=8)
    theirs.load_state_dict(read(out)['state_dict'], strict=True)
    x = golden_input((2, 3, 75, 64))
    assert_close('scores', ours(x), theirs.eval()(x), 10 * TOLERANCE[torch.float32][0])
    # timm's own reader takes the file as it is
    again = timm.create_model(f'inception_next_{arch}', num_classes=8, checkpoint_path=str(out))
    assert_same(again.state_dict(), theirs.state_dict())
    # and back
    back = classifier('inceptionnext', arch, num_classes=8)
    back.load_state_dict(again.state_dict(), strict=True)
    assert_same(back.state_dict(), ours.state_dict())


@pytest.mark.parametrize(
    'record',
    [
        'inceptionnext/atto',
        RECNEXT,
        'recnext/recnext_a0',
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ('slak/slak_tiny', 'dcls_convnext/tiny', 'recnext/recnext_t_share_channel')
        ),
    ],
)
def test_authors_form_of_our_classifier_is_the_published_file(convert, record, tmp_path):
    ours = classifier(*RECORDS[record])
    ours.load_state_dict(published(record), strict=True)
    save(ours, tmp_path / 'epoch_1.pth')
    assert convert(tmp_path / 'epoch_1.pth', tmp_path / 'a.pth', '--to', 'authors') == 0
    content = read(tmp_path / 'a.pth')
    assert set(content) == {CONTAINERS[RECORDS[record][0]], 'meta'}
    state = content[CONTAINERS[RECORDS[record][0]]]
    assert_same(state, published(record))
    assert {key: (v.shape, v.dtype) for key, v in state.items()} == {
        key: (v.shape, v.dtype) for key, v in recorded(record).items()
    }
    # a published file is left as it is
    assert convert(tmp_path / 'a.pth', tmp_path / 'b.pth', '--to', 'authors') == 0
    assert_same(read(tmp_path / 'b.pth')[CONTAINERS[RECORDS[record][0]]], state)


def test_backbone_of_a_dense_network_goes_without_its_output_norms(convert, tmp_path, capsys):
    timm = pytest.importorskip('timm')
    backbone = load_golden_weights(InceptionNeXt('atto', output_norm=True))
    whole = {f'backbone.{key}': value for key, value in backbone.state_dict().items()}
    torch.save({'state_dict': {**whole, 'decode_head.a.weight': torch.ones(1)}}, tmp_path / 'a.pth')
    assert convert(tmp_path / 'a.pth', tmp_path / 'b.pth', '--to', 'timm') == 1
    assert 'holds backbone, decode_head; classifiers and' in capsys.readouterr().err
    arguments = ['--to', 'timm', '--prefix', 'backbone']
    assert convert(tmp_path / 'a.pth', tmp_path / 'b.pth', *arguments) == 0
    said = capsys.readouterr().out
    assert '20 keys left out, which dense networks alone have' in said and 'has no head' in said
    theirs = timm.create_model('inception_next_atto')
    state = read(tmp_path / 'b.pth')['state_dict']
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not unexpected and {key.split('.')[0] for key in missing} == {'head'}
    for key, value in state.items():
        assert torch.equal(value, backbone.state_dict()[key]), key


def folded(part):
    model = classifier(*RECORDS[RECNEXT], num_classes=5)
    getattr(model, part).switch_to_deploy()
    return model.state_dict()


def without_a_norm():
    state = dict(classifier(*RECORDS['inceptionnext/atto'], num_classes=5).state_dict())
    del state['head.norm.bias']
    return state


REFUSED = {
    'another family for timm': (
        lambda: classifier(*RECORDS[RECNEXT], num_classes=5).state_dict(),
        'timm',
        'timm has no RecNeXt; --to authors',
    ),
    'folded backbone': (lambda: folded('backbone'), 'authors', 'before switch_to_deploy'),
    'folded head': (lambda: folded('head'), 'authors', 'folded by switch_to_deploy has no'),
    'part of a head': (without_a_norm, 'timm', 'not that of InceptionNeXt atto: norm.bias'),
    'stranger': (lambda: {'layer1.0.conv1.weight': torch.ones(1)}, 'timm', 'holds ResNet'),
}


@pytest.mark.parametrize('what', REFUSED)
def test_what_has_no_published_form_is_refused_and_nothing_written(convert, what, tmp_path, capsys):
    make, form, message = REFUSED[what]
    torch.save({'state_dict': dict(make())}, tmp_path / 'a.pth')
    assert convert(tmp_path / 'a.pth', tmp_path / 'b.pth', '--to', form) == 1
    assert message in capsys.readouterr().err
    assert os.listdir(tmp_path) == ['a.pth']
