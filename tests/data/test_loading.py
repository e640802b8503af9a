"""The generated layouts as MMSegmentation, pycocotools and MMDetection read them."""

import json

import numpy as np
import pytest
from PIL import Image

from mmlk.data.classes import ADE20K
from mmlk.data.scene import make_scene
from tests.data.conftest import PARAMETERS


def scene(split, index):
    return make_scene(PARAMETERS.seed, split, index, PARAMETERS.height, PARAMETERS.width)


@pytest.mark.parametrize('split, count', [('training', 8), ('validation', 3)])
def test_mmseg_reads_images_and_shifted_labels(generated, split, count):
    datasets = pytest.importorskip('mmseg.datasets')
    loaded = datasets.ADE20KDataset(
        data_root=str(generated),
        data_prefix=dict(img_path=f'images/{split}', seg_map_path=f'annotations/{split}'),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='mmlk.CheckSample'),
            dict(type='mmseg.LoadAnnotations', reduce_zero_label=True),
        ],
    )
    assert len(loaded) == count
    for index, sample in enumerate(loaded):
        painted = scene(split, index)
        expected = np.where(painted.labels == 0, 255, painted.labels.astype(int) - 1)
        np.testing.assert_array_equal(sample['gt_seg_map'], expected)
        difference = sample['img'][..., ::-1].astype(int) - painted.image
        assert np.abs(difference).mean() < 6


def test_label_files_are_8_bit_grey(generated):
    for path in generated.glob('annotations/*/*.png'):
        with Image.open(path) as picture:
            assert picture.mode == 'L'
            assert set(np.unique(picture).tolist()) <= {0, *ADE20K.values()}


def test_pycocotools_reads_the_painted_masks(generated):
    coco = pytest.importorskip('pycocotools.coco').COCO(
        str(generated / 'annotations/instances_train2017.json')
    )
    assert len(coco.getCatIds()) == 80
    for index in range(PARAMETERS.train):
        instances = scene('training', index).instances
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=[index + 1]))
        assert len(annotations) == len(instances)
        for annotation, instance in zip(annotations, instances):
            mask = coco.annToMask(annotation).astype(bool)
            np.testing.assert_array_equal(mask, instance.mask)
            assert annotation['area'] == mask.sum()
            assert annotation['iscrowd'] == instance.crowd
            assert coco.cats[annotation['category_id']]['name'] == instance.category


def test_mmdet_reads_boxes_masks_and_class_numbers(generated):
    datasets = pytest.importorskip('mmdet.datasets')
    loaded = datasets.CocoDataset(
        data_root=str(generated),
        ann_file='annotations/instances_train2017.json',
        data_prefix=dict(img='train2017/'),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='mmlk.CheckSample'),
            dict(type='mmdet.LoadAnnotations', with_bbox=True, with_mask=True),
        ],
    )
    assert len(loaded) == PARAMETERS.train
    names = loaded.metainfo['classes']
    for index, sample in enumerate(loaded):
        instances = scene('training', index).instances
        assert [names[label] for label in sample['gt_bboxes_labels']] == [
            instance.category for instance in instances
        ]
        np.testing.assert_array_equal(
            sample['gt_masks'].masks.astype(bool).reshape(-1, *sample['img_shape']),
            np.array([instance.mask for instance in instances]).reshape(-1, *sample['img_shape']),
        )
        assert sample['gt_ignore_flags'].tolist() == [instance.crowd for instance in instances]


def test_identities_are_unique_over_splits(generated):
    splits = [
        json.loads((generated / f'annotations/instances_{name}2017.json').read_text())
        for name in ('train', 'val')
    ]
    images = [image['id'] for split in splits for image in split['images']]
    assert len(images) == len(set(images)) == 11
    for split in splits:
        ids = [annotation['id'] for annotation in split['annotations']]
        assert ids == list(range(1, len(ids) + 1))
