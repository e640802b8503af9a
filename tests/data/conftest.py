"""One small generated set in both layouts, shared by the tests, and copies of it to spoil."""

import shutil

import pytest

from mmlk.data.folder import write_folder
from mmlk.data.scene import VERSION
from mmlk.data.writers import Parameters, dataset_files

PARAMETERS = Parameters(('ade20k', 'coco'), train=8, val=3, height=128, width=160, seed=3)


@pytest.fixture(scope='session')
def generated(tmp_path_factory):
    """Root of a set of 8 + 3 scenes; read only."""
    root = tmp_path_factory.mktemp('generated') / 'data'
    write_folder(root, dataset_files(PARAMETERS), VERSION, PARAMETERS.as_dict())
    return root


@pytest.fixture
def spoilt(generated, tmp_path):
    """A copy of the set that a test may spoil."""
    return shutil.copytree(generated, tmp_path / 'data')


@pytest.fixture
def segmentation_config():
    """Makes the loaders of an ADE20K config with a given root."""

    def make(root, **extra):
        def loader(split):
            return dict(
                type='ADE20KDataset',
                data_root=str(root),
                **extra,
                data_prefix=dict(img_path=f'images/{split}', seg_map_path=f'annotations/{split}'),
            )

        return dict(
            default_scope='mmseg',
            train_dataloader=dict(dataset=loader('training')),
            val_dataloader=dict(dataset=loader('validation')),
        )

    return make


@pytest.fixture
def detection_config():
    """Makes the loaders of a COCO config with a given root."""

    def make(root, **extra):
        def loader(split, **more):
            return dict(
                dataset=dict(
                    type='CocoDataset',
                    data_root=str(root),
                    data_prefix=dict(img=f'{split}2017/'),
                    ann_file=f'annotations/instances_{split}2017.json',
                    **more,
                    **extra,
                )
            )

        return dict(
            default_scope='mmdet',
            train_dataloader=loader('train'),
            val_dataloader=loader('val', test_mode=True),
        )

    return make
