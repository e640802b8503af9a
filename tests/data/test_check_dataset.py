"""The offline scan reports every broken file of the data sets that a config names."""

import re

import numpy as np
import pytest
from PIL import Image

from tests.data.layouts import HEIGHT, WIDTH, write_image, write_label
from tests.scripts import load_tool

pytest.importorskip('mmengine')

tool = load_tool('check_dataset.py')


@pytest.fixture
def arguments(spoilt, tmp_path, segmentation_config):
    """Command line for a config of the spoilt set."""
    config = tmp_path / 'config.py'
    config.write_text(
        '\n'.join(f'{key} = {value!r}' for key, value in segmentation_config('elsewhere').items())
        + "\ndata_root = 'elsewhere'\n"
    )
    return [str(config), '--cfg-options', f'data_root={spoilt}']


def test_a_whole_set_has_no_problem(arguments, capsys):
    assert tool.main(arguments) == 0
    assert capsys.readouterr().out.endswith('0 problem(s)\n')


def test_all_problems_are_reported_by_file(arguments, spoilt, capsys):
    image = spoilt / 'images/training/ADE_train_00000002.jpg'
    image.write_bytes(image.read_bytes()[:-200])
    Image.fromarray(np.full((9, 9), 151, np.uint8)).save(
        spoilt / 'annotations/validation/ADE_val_00000003.png'
    )
    assert tool.main(arguments) == 1
    out = capsys.readouterr().out
    assert 'ADE_train_00000002.jpg: ' in out
    assert 'ADE_val_00000003.png: holds the label value 151' in out
    assert out.endswith('2 problem(s)\n')


@pytest.fixture
def own(tmp_path):
    """Command line and label maps of a project of two classes, 255 ignored, with two images."""
    labels = []
    for name in ('a', 'b'):
        write_image(tmp_path / f'images/{name}.png')
        write_label(tmp_path / f'labels/{name}.png')
        labels.append(tmp_path / f'labels/{name}.png')
    (tmp_path / 'config.py').write_text(
        f"""default_scope = 'mmseg'
model = dict(decode_head=dict(num_classes=2), auxiliary_head=dict(num_classes=2))
train_dataloader = dict(dataset=dict(
    type='BaseSegDataset', data_root={str(tmp_path)!r}, img_suffix='.png',
    metainfo=dict(classes=('ground', 'road')),
    data_prefix=dict(img_path='images', seg_map_path='labels')))
"""
    )
    return [str(tmp_path / 'config.py')], labels


def fill(path, *values):
    labels = np.full((HEIGHT, WIDTH), values[0], np.uint8)
    labels[3, 5] = values[-1]
    Image.fromarray(labels).save(path)


@pytest.mark.parametrize(
    'values, status, line',
    [
        ((0, 255), 0, 'labels may be 0..1 and 255 (ignored)'),
        ((1, 77), 1, 'a.png: holds the label value 77 at row 3, column 5'),
        ((1, 2), 1, 'a.png: holds the label value 2'),
        ((255,), 0, 'warning: 1 of 2 label maps hold ignored pixels alone'),
    ],
)
def test_labels_are_read_against_the_project(own, capsys, values, status, line):
    arguments, (label, _) = own
    fill(label, *values)
    assert tool.main(arguments) == status
    assert line in capsys.readouterr().out


def test_a_set_of_ignored_pixels_alone_is_a_problem(own, capsys):
    arguments, labels = own
    for label in labels:
        fill(label, 255)
    assert tool.main(arguments) == 1
    assert '2 of 2 label maps hold ignored pixels alone' in capsys.readouterr().out


def test_a_damaged_body_is_found_and_named(arguments, spoilt, capsys):
    image = spoilt / 'images/training/ADE_train_00000004.jpg'
    content = image.read_bytes()
    half = len(content) // 2
    image.write_bytes(content[:half] + bytes(400) + content[half + 400 :])
    assert tool.main(arguments) == 1
    assert re.search('ADE_train_00000004.jpg: .*(damaged|broken)', capsys.readouterr().out)


def test_a_contradiction_is_answered_before_anything_is_read(own, capsys):
    arguments, _ = own
    arguments += ['--cfg-options', 'model.auxiliary_head.num_classes=1']
    with pytest.raises(SystemExit, match=r'error: (.|\n)*auxiliary_head=dict\(num_classes=2\)'):
        tool.main(arguments)
    assert capsys.readouterr().out == ''


def test_a_missing_folder_is_answered_like_in_training(arguments):
    with pytest.raises(SystemExit, match='error: .*no folder elsewhere'):
        tool.main([arguments[0]])
