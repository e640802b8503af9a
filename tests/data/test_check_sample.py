"""The pipeline step refuses broken files by name, in every worker process, and nothing else."""

import shutil

import numpy as np
import pytest
from PIL import Image

from mmlk.data.files import image_size
from tests.data.test_labels import encoded, labels_with


@pytest.fixture
def check():
    return pytest.importorskip('mmlk.data.transforms').CheckSample


def sample(root, **more):
    return dict(
        img_path=str(root / 'images/training/ADE_train_00000002.jpg'),
        seg_map_path=str(root / 'annotations/training/ADE_train_00000002.png'),
        reduce_zero_label=True,
        label_map=None,
        **more,
    )


def test_a_good_sample_passes_unchanged_and_is_read_once(spoilt, check):
    step, results = check(150), sample(spoilt)
    assert step(dict(results)) == results
    shutil.rmtree(spoilt)
    assert step(dict(results)) == results


def test_samples_without_files_pass(check):
    for results in (dict(img=np.zeros((3, 3, 3))), dict(img_path=None)):
        assert check()(dict(results)).keys() == results.keys()


@pytest.mark.parametrize(
    'key, content, message',
    [
        ('img_path', b'junk', 'ADE_train_00000002.jpg: cannot be decoded'),
        ('img_path', encoded(np.ones((20, 30, 3), np.uint8))[:-9], '2.jpg: the PNG is truncated'),
        ('seg_map_path', b'junk', 'ADE_train_00000002.png: cannot be decoded'),
        ('seg_map_path', labels_with(200), 'ADE_train_00000002.png: holds the label value 200'),
        ('seg_map_path', labels_with(2), 'ADE_train_00000002.png: is 20x30'),
    ],
    ids=['image', 'truncated-png', 'label', 'value', 'size'],
)
def test_a_broken_file_is_named(spoilt, check, key, content, message):
    results = sample(spoilt)
    open(results[key], 'wb').write(content)
    with pytest.raises(ValueError, match=f'CheckSample: .*{message}'):
        check(150)(results)


@pytest.mark.parametrize(
    'reduce_zero_label, value, passes',
    [(False, 255, True), (False, 3, True), (False, 4, False), (True, 4, True), (True, 5, False)],
)
def test_allowed_values_follow_from_the_data_set(spoilt, check, reduce_zero_label, value, passes):
    results = dict(sample(spoilt), reduce_zero_label=reduce_zero_label)
    labels = np.ones_like(np.asarray(Image.open(results['seg_map_path'])))
    labels[3, 5] = value
    Image.fromarray(labels).save(results['seg_map_path'])
    if passes:
        check(4)(dict(results))
    else:
        with pytest.raises(ValueError, match=f'label value {value} at row 3, column 5'):
            check(4)(dict(results))


def test_a_label_map_of_ignored_pixels_alone_is_reported_with_its_name(spoilt, check):
    results = sample(spoilt)
    labels = np.zeros_like(np.asarray(Image.open(results['seg_map_path'])))
    Image.fromarray(labels).save(results['seg_map_path'])
    with pytest.warns(UserWarning, match='ADE_train_00000002.png: every pixel is ignored'):
        check(150)(dict(results))


def test_truncation_can_be_allowed(spoilt, check):
    results = sample(spoilt)
    content = open(results['img_path'], 'rb').read()
    open(results['img_path'], 'wb').write(content[:-400])
    with pytest.raises(ValueError, match='truncated'):
        check()(dict(results))
    assert check(allow_truncated=True)(dict(results)) == results


def test_the_size_that_a_coco_file_states_must_be_true(generated, check):
    path = str(generated / 'train2017/000000000001.jpg')
    height, width = image_size(open(path, 'rb').read())
    check()(dict(img_path=path, height=height, width=width))
    with pytest.raises(ValueError, match='the annotation file says 99x'):
        check()(dict(img_path=path, height=99, width=width))


def test_the_error_of_a_worker_process_names_the_file(spoilt):
    datasets = pytest.importorskip('mmseg.datasets')
    from torch.utils.data import DataLoader

    bad = spoilt / 'annotations/training/ADE_train_00000005.png'
    bad.write_bytes(labels_with(151))
    loaded = datasets.ADE20KDataset(
        data_root=str(spoilt),
        pipeline=[dict(type='mmlk.CheckSample', num_classes=150)],
        data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
    )
    with pytest.raises(ValueError, match='ADE_train_00000005.png: holds the label value 151'):
        list(DataLoader(loaded, batch_size=None, num_workers=1))
