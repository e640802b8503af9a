"""Every data set that the neighbour libraries register: its own layout passes, a broken one not.

Scenarios: 64 names x (valid, image missing, annotation missing), packages that are absent.
"""

from importlib import import_module

import pytest

from mmlk.data.errors import DataError
from mmlk.data.layout import check_datasets
from tests.data.layout_table import MMDET, MMSEG
from tests.data.stand_ins import put_in_place

pytest.importorskip('mmseg')
pytest.importorskip('mmdet')

LAYOUTS = {('mmseg', name): layout for name, layout in MMSEG.items()} | {
    ('mmdet', name): layout for name, layout in MMDET.items()
}
WRAPPERS = {'ConcatDataset', 'MultiImageMixDataset'}
ALL = pytest.mark.parametrize('scope, name', LAYOUTS, ids=map('-'.join, LAYOUTS))


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Writes the layout of a data set and returns its folder and a config of it."""
    put_in_place(monkeypatch)
    _keep_class_names(monkeypatch)

    def build(scope, name):
        settings = dict(LAYOUTS[scope, name].make(tmp_path / 'set'), type=name)
        return tmp_path / 'set', dict(default_scope=scope, train_dataloader=dict(dataset=settings))

    return build


def _keep_class_names(monkeypatch):
    """YouTube-VIS writes the classes of the version asked for into its class."""
    from mmdet.datasets import YouTubeVISDataset

    monkeypatch.setattr(YouTubeVISDataset, 'METAINFO', YouTubeVISDataset.METAINFO)


@pytest.mark.parametrize('scope', ['mmseg', 'mmdet'])
def test_the_table_has_every_registered_class(scope):
    registry = import_module(f'{scope}.registry').DATASETS
    registry.import_from_location()
    named = {name for place, name in LAYOUTS if place == scope}
    assert named == set(registry.module_dict) - WRAPPERS


@ALL
def test_a_valid_folder_passes(make, scope, name):
    _, config = make(scope, name)
    lines = check_datasets(config, ['train_dataloader'])
    assert lines and not any('will judge' in line for line in lines)


@ALL
def test_a_missing_image_is_named(make, scope, name):
    root, config = make(scope, name)
    image = root / LAYOUTS[scope, name].image
    image.unlink()
    with pytest.raises(DataError) as caught:
        check_datasets(config, ['train_dataloader'])
    message = str(caught.value)
    assert message.startswith('train_dataloader: ')
    # A class that lists a folder has nothing left to name but the folder and the suffix.
    assert str(image) in message or image.name.endswith(message.split('no *')[1].split(' ')[0])


@ALL
def test_a_missing_annotation_is_named(make, scope, name):
    root, config = make(scope, name)
    annotation = root / LAYOUTS[scope, name].annotation
    annotation.unlink()
    with pytest.raises(DataError) as caught:
        check_datasets(config, ['train_dataloader'])
    assert str(caught.value).startswith('train_dataloader: ')
    assert annotation.name in str(caught.value)


@pytest.mark.parametrize(
    'scope, name, package',
    [
        ('mmdet', 'LVISV1Dataset', 'lvis'),
        ('mmdet', 'DODDataset', 'ddd-dataset'),
        ('mmdet', 'DSDLDetDataset', 'dsdl'),
        ('mmseg', 'DSDLSegDataset', 'dsdl'),
        ('mmseg', 'OneDLDataset', 'onedl'),
    ],
)
def test_an_absent_package_is_the_cause_that_is_given(tmp_path, scope, name, package):
    settings = dict(LAYOUTS[scope, name].make(tmp_path), type=name)
    config = dict(default_scope=scope, train_dataloader=dict(dataset=settings))
    with pytest.raises(DataError, match=f'{name} refuses its data.*{package}'):
        check_datasets(config, ['train_dataloader'])
