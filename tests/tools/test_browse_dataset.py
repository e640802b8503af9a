"""Pictures of training samples: of all three tasks, as the files are and as the model gets them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmlk.analysis.samples import Drawn, as_picture, contact_sheet
from mmlk.cli.program import main as program
from tests.scripts import load_tool

ROOT = Path(__file__).parents[2]
CONFIGS = dict(
    segmentation='upernet_inceptionnext_a_ade20k_mini.py',
    detection='mask_rcnn_recnext_m0_coco_mini.py',
    classification='inceptionnext_a_in1k_mini.py',
)


tool = load_tool('browse_dataset.py')


@pytest.fixture(scope='module')
def roots(tmp_path_factory):
    """A data set of three training pictures per task."""
    scenes, classes = (tmp_path_factory.mktemp(name) / 'data' for name in ('scenes', 'classes'))
    size = ['--train', '3', '--val', '1', '--size', '112x128']
    assert program(['generate-data', str(scenes), '--format', 'both', *size]) == 0
    assert (
        program(
            [
                'generate-data',
                str(classes),
                '--format',
                'classes',
                *size[:-4],
                '--train',
                '8',
                '--val',
                '8',
            ]
        )
        == 0
    )
    layouts = {path.name: path for path in scenes.iterdir() if path.is_dir()}
    return dict(
        segmentation=layouts.get('ade20k', scenes),
        detection=layouts.get('coco', scenes),
        classification=classes,
    )


def browse(task, roots, folder, *options):
    config = str(ROOT / 'configs' / CONFIGS[task])
    data = ['--cfg-options', f'data_root={roots[task]}']
    return tool.main([config, '--output-dir', str(folder), *options, *data])


def read(path):
    return np.asarray(Image.open(path).convert('RGB')).astype(int)


@pytest.mark.parametrize('task', ['detection', 'classification'])
def test_samples_are_written(task, roots, tmp_path, capsys):
    assert browse(task, roots, tmp_path, '--max-number', '2', '--not-show') == 0
    assert '2 of ' in capsys.readouterr().out
    names = sorted(path.name for path in tmp_path.iterdir())
    assert len(names) == 3 and names[-1] == 'sheet.png' and names[0].startswith('00000_')


def test_a_seed_repeats_its_samples(roots, tmp_path):
    for run, seed in zip('abc', '003'):
        options = ['--max-number', '3', '--seed', seed]
        assert browse('segmentation', roots, tmp_path / run, *options) == 0
    names = sorted(path.name for path in (tmp_path / 'a').glob('0*.png'))
    first, again, other = ([read(tmp_path / run / name) for name in names] for run in 'abc')
    assert all(max(each.shape) <= 128 for each in first)
    assert all(map(np.array_equal, first, again)) and not all(map(np.array_equal, first, other))


def test_original_segmentation_has_size_and_colours_of_the_files(roots, tmp_path):
    """Half of the image and half of the colour of the class."""
    assert browse('segmentation', roots, tmp_path, '--mode', 'original', '--max-number', '1') == 0
    from mmengine.config import Config
    from mmseg.datasets import ADE20KDataset

    (path,) = tmp_path.glob('00000_*.png')
    stem = path.stem.split('_', 1)[1]
    root = roots['segmentation']
    image = read(root / 'images/training' / f'{stem}.jpg')
    labels = np.asarray(Image.open(root / 'annotations/training' / f'{stem}.png')).astype(int)
    full = ADE20KDataset.METAINFO
    wanted = Config.fromfile(ROOT / 'configs' / CONFIGS['segmentation'])
    shown = wanted.train_dataloader.dataset.metainfo.classes
    palette = np.zeros((256, 3), int)
    for value in np.unique(labels):
        if value and full['classes'][value - 1] in shown:
            palette[value] = full['palette'][value - 1]
    expected = (image * 0.5 + palette[labels] * 0.5).astype(int)
    drawn = read(path)
    assert drawn.shape == image.shape
    alike = (np.abs(drawn - expected) <= 3).all(-1)
    assert alike.mean() > 0.75, 'names of classes cover a part'


def test_original_detection_draws_objects_and_nothing_else(roots, tmp_path):
    assert browse('detection', roots, tmp_path, '--mode', 'original', '--max-number', '3') == 0
    root = roots['detection']
    (file,) = root.rglob('instances_train*.json')
    coco = json.loads(file.read_text())
    for info in coco['images']:
        (path,) = tmp_path.glob(f'*_{Path(info["file_name"]).stem}.png')
        (source,) = root.rglob(info['file_name'])
        drawn, image = read(path), read(source)
        assert drawn.shape == image.shape
        boxes = [each['bbox'] for each in coco['annotations'] if each['image_id'] == info['id']]
        assert bool(boxes) == bool((np.abs(drawn - image).max(-1) > 40).any())
        for x, y, width, height in boxes:
            part = np.s_[int(y) : int(y + height) + 1, int(x) : int(x + width) + 1]
            assert np.abs(drawn[part] - image[part]).mean() > 5


def test_wrapped_data_sets(roots, tmp_path, capsys):
    from mmengine.config import Config

    inner = Config.fromfile(ROOT / 'configs' / CONFIGS['segmentation']).train_dataloader.dataset
    wrapped = tmp_path / 'wrapped.py'
    wrapped.write_text(
        f"_base_ = 'mmlk::{CONFIGS['segmentation']}'\n"
        f'inner = {dict(inner, data_root=str(roots["segmentation"]))!r}\n'
        "train_dataloader = dict(dataset=dict(_delete_=True, type='ConcatDataset', datasets=["
        "dict(type='RepeatDataset', times=2, dataset=inner), inner]))\n"
    )
    for mode, count in (('transformed', 9), ('original', 6)):
        arguments = [str(wrapped), '--output-dir', str(tmp_path / mode), '--max-number', '1']
        assert tool.main([*arguments, '--mode', mode]) == 0
        assert f'1 of {count} samples, {mode}' in capsys.readouterr().out


def test_validation_samples_fit_their_labels(roots, tmp_path):
    """Detection loads boxes and masks after it has resized the image."""
    assert browse('detection', roots, tmp_path, '--phase', 'val', '--max-number', '1') == 0
    (path,) = tmp_path.glob('00000_*.png')
    (source,) = roots['detection'].rglob(f'{path.stem.split("_", 1)[1]}.jpg')
    assert Image.open(path).size == Image.open(source).size


def test_pictures_of_every_kind_of_image():
    """Grey, colours in either order, more bands, and values that are no bytes."""
    bands = torch.arange(4)[:, None, None].expand(4, 2, 3) * 20
    assert as_picture(bands[:3].byte(), False)[0, 0].tolist() == [0, 20, 40]
    assert as_picture(bands[:3].byte(), True)[0, 0].tolist() == [40, 20, 0]
    assert as_picture(bands[1:2].byte(), True)[0, 0].tolist() == [20, 20, 20]
    assert as_picture(bands.byte(), True)[0, 0].tolist() == [0, 20, 40]
    assert as_picture(bands[:3].float() * 100 - 7, False)[0, 0].tolist() == [0, 128, 255]
    assert as_picture(torch.zeros(3, 2, 2), False).max() == 0


def test_contact_sheet_has_every_picture_in_order():
    drawn = [Drawn(str(i), np.full((40, 80, 3), 50 * i, np.uint8)) for i in range(5)]
    sheet = np.asarray(contact_sheet(drawn, 4, 40))
    assert sheet.shape[1] == 4 * 46 + 6
    centres = [sheet[6 + 14 + 10, 6 + 46 * i + 20].tolist() for i in range(4)]
    assert centres == [[50 * i] * 3 for i in range(4)]
    assert sheet[6 + 40 + 14 + 10, 26].tolist() == [200] * 3


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        (['--cfg-options', 'data_root=/nowhere'], 'train_dataloader: no folder'),
        (['--phase', 'test', '--cfg-options', 'test_dataloader=None'], 'no test_dataloader'),
        (['--cfg-options', 'train_dataloader.dataset.type=ADE20KDataste'], 'did you mean ADE20K'),
        (['--output-dir', f'{__file__}/out'], f'{__file__}/out cannot be written to'),
    ],
)
def test_bad_input_is_one_clear_message(options, words, roots, tmp_path):
    data = ['--cfg-options', f'data_root={roots["segmentation"]}']
    data += options[options.index('--cfg-options') + 1 :] if '--cfg-options' in options else []
    flags = options[: options.index('--cfg-options')] if '--cfg-options' in options else options
    with pytest.raises(SystemExit) as refused:
        tool.main(
            [
                str(ROOT / 'configs' / CONFIGS['segmentation']),
                '--output-dir',
                str(tmp_path / 'out'),
                *flags,
                *data,
            ]
        )
    assert words in str(refused.value) and 'browse_dataset.py: error:' in str(refused.value)
    assert not (tmp_path / 'out').exists()


def test_a_missing_config_and_no_samples_are_refused(capsys):
    with pytest.raises(SystemExit, match='there is no config file'):
        tool.main(['upernet_inceptionnext_x_ade20k_mini.py'])
    with pytest.raises(SystemExit):
        tool.main(['x.py', '--max-number', '0'])
    assert 'draw at least one sample' in capsys.readouterr().err
