"""MMPretrain finds our classifiers by name, in either order of import, and uses them as its own."""

import subprocess
import sys

import numpy as np
import pytest
import torch

import mmlk  # noqa: F401  (extends the hub)
from mmlk.checkpoints import zoo
from tests.cases import assert_close
from tests.classification.models import published
from tests.configs.test_configs import CLASSIFICATION, metafile_models
from tests.golden_weights import golden_input
from tests.tools.workbench import environment

NAME = 'inceptionnext_a_in1k'


@pytest.fixture(scope='module')
def api():
    return pytest.importorskip('mmpretrain')


@pytest.fixture
def weights(tmp_path):
    torch.save(published('inceptionnext/atto'), tmp_path / 'inceptionnext_atto.pth')
    return tmp_path / 'inceptionnext_atto.pth'


def test_every_config_is_listed_with_its_task_and_nothing_dense(api):
    names = {name.removesuffix('.py') for name in CLASSIFICATION}
    listed = set(api.list_models())
    assert names <= listed
    assert not {name for name in metafile_models() if '_in1k' not in name} & listed
    assert names <= set(api.list_models(task='Image Classification'))


def test_model_by_name_with_published_weights(api, weights):
    model = api.get_model(NAME, pretrained=str(weights))
    assert model._metainfo.weights == zoo.find('inceptionnext_atto').url
    assert len(model._dataset_meta['classes']) == 1000
    x = golden_input((1, 3, 64, 64))
    with torch.no_grad():
        want = model.head(model.backbone(x))
        assert_close('scores', model(x), want, 1e-6)
    for key, value in published('inceptionnext/atto').items():
        own = key if key.startswith('head.') else f'backbone.{key}'
        assert torch.equal(model.state_dict()[own], value), key


def test_model_by_path_is_the_model_by_name(api, weights):
    path = mmlk.config_path(NAME)
    by_name, by_path = (api.get_model(m, pretrained=str(weights)) for m in (NAME, path))
    assert by_path._dataset_meta == by_name._dataset_meta
    for key, value in by_name.state_dict().items():
        assert torch.equal(by_path.state_dict()[key], value), key
    image = np.random.RandomState(1).randint(0, 256, (90, 120, 3)).astype(np.uint8)
    found = [
        api.ImageClassificationInferencer(m, pretrained=str(weights))(image)[0]['pred_scores']
        for m in (NAME, path)
    ]
    assert np.array_equal(*found)


def test_changes_are_merged_and_another_class_count_starts_anew(api, weights):
    model = api.get_model(NAME, pretrained=str(weights), head=dict(num_classes=3))
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 3)


def test_inference_by_model_and_by_inferencer(api, weights):
    image = np.random.RandomState(0).randint(0, 256, (90, 120, 3)).astype(np.uint8)
    model = api.get_model(NAME, pretrained=str(weights))
    result = api.inference_model(model, image)
    assert result['pred_label'] == int(np.argmax(result['pred_scores']))
    again = api.ImageClassificationInferencer(NAME, pretrained=str(weights))(image)[0]
    assert again['pred_label'] == result['pred_label']
    assert again['pred_class'] == model._dataset_meta['classes'][result['pred_label']]


def test_names_of_the_zoo_are_read_by_mmengine(api, weights, monkeypatch):
    from mmlk.checkpoints import read

    monkeypatch.setattr(read, 'locate', lambda source, **_: weights)
    model = api.get_model(NAME, pretrained='mmlk://inceptionnext_atto')
    state = published('inceptionnext/atto')
    assert torch.equal(model.state_dict()['head.fc2.bias'], state['head.fc2.bias'])


def last_word(program, folder):
    """What a process of its own prints last."""
    run = subprocess.run(
        [sys.executable, '-c', program],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment(),
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.split()[-1]


@pytest.mark.slow
def test_path_is_enough_where_nothing_imports_mmlk(tmp_path):
    pytest.importorskip('mmpretrain')
    program = (
        'import sys; from mmpretrain import get_model; '
        f'model = get_model({mmlk.config_path(NAME)!r}); print(type(model.head).__module__)'
    )
    assert last_word(program, tmp_path) == 'mmlk.classification.heads'


@pytest.mark.slow
@pytest.mark.parametrize('first', ['mmlk', 'mmpretrain'])
def test_order_of_imports_does_not_matter(first, tmp_path):
    pytest.importorskip('mmpretrain')
    second = {'mmlk': 'mmpretrain', 'mmpretrain': 'mmlk'}[first]
    program = (
        f'import {first}, {second}; from mmpretrain import list_models, get_model; '
        f"assert '{NAME}' in list_models('inceptionnext'); "
        "print(type(get_model('recnext_m0_in1k')).__name__)"
    )
    assert last_word(program, tmp_path) == 'DistilledClassifier'
