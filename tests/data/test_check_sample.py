"""Broken image and label files surface with their name, in the pipeline and in the offline scan."""

import io
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from mmlk.data.files import image_problem, image_size, label_problem


def encoded(array, kind='PNG', **options):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **options)
    return buffer.getvalue()


def labels_with(value, dtype=np.uint8):
    labels = np.ones((20, 30), dtype)
    labels[4, 7] = value
    return encoded(labels)


@pytest.fixture
def picture(generated):
    return (generated / 'images/training/ADE_train_00000001.jpg').read_bytes()


@pytest.mark.parametrize('progressive', [False, True])
def test_whole_images_pass(picture, progressive):
    array = np.asarray(Image.open(io.BytesIO(picture)))
    again = encoded(array, 'JPEG', progressive=progressive)
    for content in (picture, again, again + b'\0' * 64, encoded(array)):
        assert image_problem(content) is None
        assert image_problem(content, decode=True) is None
        assert image_size(content) == array.shape[:2]


@pytest.mark.parametrize('keep', [0.3, 0.7, 0.97])
@pytest.mark.parametrize('progressive', [False, True])
def test_truncated_jpegs_are_found_without_decoding(picture, progressive, keep):
    content = encoded(np.asarray(Image.open(io.BytesIO(picture))), 'JPEG', progressive=progressive)
    assert 'truncated' in image_problem(content[: int(keep * len(content))])


@pytest.mark.parametrize(
    'content, message',
    [
        (b'', 'is empty'),
        (b'<html>404</html>', 'cannot be decoded'),
        (b'\xff\xd8\xff\xe0', 'cannot be decoded'),
    ],
    ids=['empty', 'html', 'header'],
)
def test_what_is_no_image_is_found(content, message):
    assert message in image_problem(content)
    assert message.split()[-1] in label_problem(content)


def test_exif_orientation_turns_the_size():
    exif = Image.Exif()
    exif[0x0112] = 6
    content = encoded(np.zeros((20, 30, 3), np.uint8), 'JPEG', exif=exif)
    assert image_size(content) == (30, 20)


@pytest.mark.parametrize(
    'content, message',
    [
        (labels_with(151), 'label value 151 at row 4, column 7 .1 pixel'),
        (labels_with(255), 'label value 255'),
        (labels_with(3000, np.uint16), 'label value 3000'),
        (encoded(np.zeros((20, 30, 3), np.uint8)), '3 channels .* full ADE20K'),
        (labels_with(3)[:-30], 'cannot be decoded'),
        (encoded(np.ones((20, 31), np.uint8)), 'is 20x31 .* its image is 20x30'),
    ],
    ids=['151', '255', '16-bit', 'colour', 'truncated', 'size'],
)
def test_broken_label_maps_are_found(content, message):
    assert re.search(message, label_problem(content, size=(20, 30)))


@pytest.mark.parametrize('value', [0, 1, 150])
def test_allowed_label_values_pass(value):
    assert label_problem(labels_with(value), size=(20, 30)) is None


@pytest.fixture
def check():
    return pytest.importorskip('mmlk.data.transforms').CheckSample


def sample(root):
    return dict(
        img_path=str(root / 'images/training/ADE_train_00000002.jpg'),
        seg_map_path=str(root / 'annotations/training/ADE_train_00000002.png'),
    )


def test_a_good_sample_passes_unchanged_and_is_read_once(spoilt, check):
    step, results = check(), sample(spoilt)
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
        ('seg_map_path', b'junk', 'ADE_train_00000002.png: cannot be decoded'),
        ('seg_map_path', labels_with(200), 'ADE_train_00000002.png: holds the label value 200'),
        ('seg_map_path', labels_with(2), 'ADE_train_00000002.png: is 20x30'),
    ],
    ids=['image', 'label', 'value', 'size'],
)
def test_a_broken_file_is_named(spoilt, check, key, content, message):
    results = sample(spoilt)
    open(results[key], 'wb').write(content)
    with pytest.raises(ValueError, match=f'CheckSample: .*{message}'):
        check()(results)


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
        pipeline=[dict(type='mmlk.CheckSample')],
        data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
    )
    with pytest.raises(ValueError, match='ADE_train_00000005.png: holds the label value 151'):
        list(DataLoader(loaded, batch_size=None, num_workers=1))
