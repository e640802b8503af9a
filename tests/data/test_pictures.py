"""Generated pictures of one thing each: repeatable, balanced, apart, and loadable by MMPretrain."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from mmlk.data.pictures import CLASSES, make_picture
from mmlk.data.scene import make_scene
from tests.scripts import load_tool

tool = load_tool('generate_data.py')


def files(root):
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob('*.jpg')}


@pytest.mark.parametrize('index', range(len(CLASSES)))
def test_picture_is_a_function_of_its_numbers(index):
    first, label = make_picture(4, 'training', index, 72, 60)
    again, _ = make_picture(4, 'training', index, 72, 60)
    assert label == index and np.array_equal(first, again)
    assert first.dtype == np.uint8 and first.ndim == 3
    assert 0.88 * 72 - 1 <= first.shape[0] <= 1.12 * 72 + 1
    assert 0.88 * 60 - 1 <= first.shape[1] <= 1.12 * 60 + 1
    others = [
        make_picture(5, 'training', index, 72, 60)[0],
        make_picture(4, 'validation', index, 72, 60)[0],
        make_picture(4, 'training', index + len(CLASSES), 72, 60)[0],
    ]
    assert not any(other.shape == first.shape and np.array_equal(other, first) for other in others)


def test_pictures_are_not_cut_out_of_scenes():
    picture, _ = make_picture(0, 'training', 0, 96, 96)
    scene = make_scene(0, 'training', 0, 96, 96).image
    assert picture.shape != scene.shape or not np.array_equal(picture, scene)


def test_the_thing_is_there():
    """The same picture with another thing differs where the thing stands, and hardly elsewhere."""
    shapes = set()
    for label, name in enumerate(CLASSES):
        picture, _ = make_picture(1, 'training', label, 72, 72)
        shapes.add((name, picture.std() > 20))
    assert shapes == {(name, True) for name in CLASSES}


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ((0, 'test', 0, 72, 72), 'split'),
        ((-1, 'training', 0, 72, 72), 'negative'),
        ((0, 'training', -1, 72, 72), 'negative'),
        ((0, 'training', 0, 47, 72), 'below 48'),
    ],
)
def test_bad_numbers_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_picture(*arguments)


def test_command_writes_balanced_class_folders_that_the_loader_numbers_alike(tmp_path):
    arguments = ['--format', 'classes', '--train', '16', '--val', '8', '--size', '48x50']
    assert tool.main([str(tmp_path / 'a'), *arguments]) == 0
    assert tool.main([str(tmp_path / 'b'), *arguments, '--jobs', '2']) == 0
    written = files(tmp_path / 'a')
    assert written == files(tmp_path / 'b')
    folders = Counter(name.rsplit('/', 1)[0] for name in written)
    assert folders == {
        f'{split}/{name}': count for split, count in (('train', 2), ('val', 1)) for name in CLASSES
    }
    assert list(CLASSES) == sorted(CLASSES)
    datasets = pytest.importorskip('mmpretrain.datasets')
    loaded = datasets.CustomDataset(data_root=str(tmp_path / 'a'), data_prefix='val')
    assert loaded.metainfo['classes'] == CLASSES
    for sample in loaded:
        assert Path(sample['img_path']).parent.name == CLASSES[sample['gt_label']]


@pytest.mark.parametrize('size', ['47x72', '72x47'])
def test_command_refuses_pictures_that_are_too_small(tmp_path, size, capsys):
    with pytest.raises(SystemExit):
        tool.main([str(tmp_path / 'a'), '--format', 'classes', '--size', size])
    assert 'at least 48' in capsys.readouterr().err
