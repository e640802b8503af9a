"""What is missing is named before training, with layout, source and remedy."""

import subprocess
import sys

import pytest

from mmlk.data.layout import DataError, check_datasets
from mmlk.data.opened import leaf_datasets
from tests.data.layout_table import MMDET
from tests.data.layouts import segmentation, write_image


def first(folder, pattern):
    return sorted(folder.glob(pattern))[0]


def remove_folder(root):
    folder = root / 'annotations/validation'
    [path.unlink() for path in folder.iterdir()]
    folder.rmdir()


def remove_images(root):
    [path.unlink() for path in (root / 'images/training').iterdir()]


def remove_label(root):
    first(root, 'annotations/training/*').unlink()


def empty_image(root):
    first(root, 'images/training/*').write_bytes(b'')


def empty_label(root):
    first(root, 'annotations/validation/*').write_bytes(b'')


def test_a_whole_set_passes_and_is_summed_up(generated, segmentation_config, detection_config):
    lines = check_datasets(segmentation_config(generated))
    assert lines == [
        f'train_dataloader: 8 samples in {generated}/images/training',
        f'val_dataloader: 3 samples in {generated}/images/validation',
    ]
    lines = check_datasets(detection_config(generated))
    assert lines[0].startswith('train_dataloader: 8 images, ')


@pytest.mark.parametrize(
    'config, source, variable',
    [
        ('segmentation_config', 'ADEChallengeData2016.zip', 'MMLK_ADE20K_ROOT'),
        ('detection_config', 'cocodataset.org', 'MMLK_COCO_ROOT'),
    ],
)
def test_a_missing_root_is_answered_with_layout_source_and_remedy(
    request, tmp_path, config, source, variable
):
    root = tmp_path / 'nowhere'
    with pytest.raises(DataError) as caught:
        check_datasets(request.getfixturevalue(config)(root))
    message = str(caught.value)
    assert message.startswith(f'train_dataloader: no folder {root}\n')
    remedies = '--cfg-options data_root=', 'mmlk generate-data'
    assert all(part in message for part in (source, variable, 'annotations/', *remedies))


def test_a_relative_root_is_shown_with_the_place_it_means(
    tmp_path, monkeypatch, segmentation_config
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=f'data/ade .that is, {tmp_path}/data/ade'):
        check_datasets(segmentation_config('data/ade'))


@pytest.mark.parametrize(
    'spoil, message',
    [
        (remove_folder, 'val_dataloader: no folder .*annotations/validation'),
        (remove_images, 'train_dataloader: no .*jpg file in .*images/training.* holds nothing'),
        (remove_label, '1 of 8 images have no label map: .*ADE_train_00000001.png for one'),
        (empty_image, 'the file .*ADE_train_00000001.jpg is empty'),
        (empty_label, 'the file .*ADE_val_00000001.png is empty'),
    ],
)
def test_an_incomplete_segmentation_set_is_refused(spoilt, segmentation_config, spoil, message):
    spoil(spoilt)
    with pytest.raises(DataError, match=message):
        check_datasets(segmentation_config(spoilt))


@pytest.mark.parametrize(
    'path, message',
    [
        ('annotations/instances_val2017.json', 'val_dataloader: no annotation file'),
        ('train2017/000000000003.jpg', 'train_dataloader: .*image 3: no file'),
    ],
)
def test_an_incomplete_coco_set_is_refused(spoilt, detection_config, path, message):
    (spoilt / path).unlink()
    with pytest.raises(DataError, match=f'(?s){message}.*cocodataset.org'):
        check_datasets(detection_config(spoilt))


def test_the_full_ade20k_release_is_recognised(tmp_path, segmentation_config):
    (tmp_path / 'index_ade20k.pkl').touch()
    with pytest.raises(DataError, match='Note: .* looks like the full ADE20K data set'):
        check_datasets(segmentation_config(tmp_path))


def test_the_folder_around_the_right_one_is_recognised(tmp_path, segmentation_config):
    (tmp_path / 'ADEChallengeData2016/images').mkdir(parents=True)
    with pytest.raises(DataError, match='ADEChallengeData2016 looks like the folder that is meant'):
        check_datasets(segmentation_config(tmp_path))


def test_wrapped_data_sets_are_checked(tmp_path, segmentation_config):
    leaf = segmentation_config(tmp_path / 'nowhere')['train_dataloader']['dataset']
    wrapped = dict(
        type='RepeatDataset',
        times=2,
        dataset=dict(
            type='ConcatDataset', datasets=[leaf, dict(type='ClassBalancedDataset', dataset=leaf)]
        ),
    )
    assert list(leaf_datasets(wrapped)) == [leaf, leaf]
    with pytest.raises(DataError, match='no folder'):
        check_datasets(dict(train_dataloader=dict(dataset=wrapped)))


def test_only_the_loaders_asked_for_are_checked(tmp_path, segmentation_config):
    cfg = segmentation_config(tmp_path / 'nowhere')
    assert check_datasets(cfg, loaders=['test_dataloader']) == []
    assert check_datasets(dict(train_dataloader=None)) == []


def test_what_cannot_be_looked_at_is_said(segmentation_config):
    for place in (
        dict(root='s3://bucket/ade'),
        dict(root='b', backend_args=dict(backend='petrel')),
    ):
        lines = check_datasets(segmentation_config(**place))
        assert len(lines) == 2 and all('file backend' in line for line in lines)
    lines = check_datasets(dict(train_dataloader=dict(dataset=dict(type='Toy'))))
    assert lines == [
        'train_dataloader: Toy is no registered data set that could be asked for its files, so '
        'they were not looked at; the loader will judge'
    ]


def test_a_test_set_without_labels_passes(spoilt, segmentation_config):
    remove_folder(spoilt)
    cfg = segmentation_config(spoilt, pipeline=[dict(type='LoadImageFromFile')])
    assert len(check_datasets(cfg)) == 2
    with pytest.raises(DataError, match='val_dataloader: no folder .*annotations/validation'):
        check_datasets(segmentation_config(spoilt, pipeline=[dict(type='LoadAnnotations')]))


@pytest.mark.parametrize(
    'suffix, message',
    [
        (dict(img_suffix='.tif'), r'no \*.tif file in .* which holds \*.jpg \(8\)'),
        (dict(seg_map_suffix='_gt.png'), r'00000001_gt.png for one; its folder holds \*.png \(8\)'),
    ],
)
def test_a_wrong_suffix_is_answered_with_what_is_there(
    generated, segmentation_config, suffix, message
):
    with pytest.raises(DataError, match=message):
        check_datasets(segmentation_config(generated, **suffix))


def test_a_list_of_names_says_which_files_are_read(spoilt, segmentation_config):
    (spoilt / 'some.txt').write_text('ADE_train_00000002\nADE_train_00000005\n')
    remove_label(spoilt)
    cfg = segmentation_config(spoilt, ann_file='some.txt')
    (line,) = check_datasets(cfg, ['train_dataloader'])
    assert line.startswith('train_dataloader: 2 samples') and line.endswith('some.txt')
    (spoilt / 'some.txt').write_text('ADE_train_00000001\n')
    with pytest.raises(DataError, match='1 of 1 images have no label map'):
        check_datasets(cfg, ['train_dataloader'])


def test_objects_of_foreign_classes_alone_are_refused(tmp_path):
    settings = MMDET['VOCDataset'].make(tmp_path / 'set')
    dataset = dict(settings, type='VOCDataset', metainfo=dict(classes=('dog',)))
    with pytest.raises(DataError, match="none of its 1 samples has an object.*'dog'"):
        check_datasets(dict(default_scope='mmdet', train_dataloader=dict(dataset=dataset)))


@pytest.mark.parametrize('as_name', [True, False])
def test_a_class_of_ones_own_is_asked(tmp_path, monkeypatch, as_name):
    registry = pytest.importorskip('mmseg.registry').DATASETS
    from mmseg.datasets import BaseSegDataset

    class Roads(BaseSegDataset):
        def __init__(self, **settings):
            super().__init__(img_suffix='_rgb.png', seg_map_suffix='_road.png', **settings)

    monkeypatch.setitem(registry.module_dict, 'Roads', Roads)
    layout = segmentation('_rgb.png', '_road.png')
    dataset = dict(layout.make(tmp_path), type='Roads' if as_name else Roads)
    cfg = dict(default_scope='mmseg', train_dataloader=dict(dataset=dataset))
    assert check_datasets(cfg)[0].startswith('train_dataloader: 1 samples')
    (tmp_path / layout.annotation).unlink()
    with pytest.raises(DataError, match='a_1_road.png'):
        check_datasets(cfg)


@pytest.mark.parametrize('kind', ['CustomDataset', 'ImageNet'])
def test_class_folders_of_mmpretrain_are_listed_too(tmp_path, kind):
    pytest.importorskip('mmpretrain')
    for name in ('cat', 'dog'):
        write_image(tmp_path / f'train/{name}/a.jpg')
    dataset = dict(
        type=kind,
        data_root=str(tmp_path),
        data_prefix='train',
        metainfo=dict(classes=('cat', 'dog')),
    )
    cfg = dict(default_scope='mmpretrain', train_dataloader=dict(dataset=dataset))
    assert check_datasets(cfg)[0].startswith('train_dataloader: 2 samples in ')
    (tmp_path / 'train/dog/a.jpg').write_bytes(b'')
    with pytest.raises(DataError, match='dog/a.jpg is empty'):
        check_datasets(cfg)


def test_a_class_of_another_kind_is_left_to_the_loader():
    from torch.utils.data import Dataset

    cfg = dict(train_dataloader=dict(dataset=dict(type=type('Numbers', (Dataset,), {}))))
    assert 'Numbers is no registered data set' in check_datasets(cfg)[0]


def test_a_package_that_cannot_be_imported_is_the_cause_that_is_given(generated, monkeypatch):
    monkeypatch.setitem(sys.modules, 'mmseg.registry', None)
    dataset = dict(type='ADE20KDataset', data_root=str(generated))
    with pytest.raises(DataError, match='data sets of mmseg cannot be imported: .*mmseg.registry'):
        check_datasets(dict(default_scope='mmseg', train_dataloader=dict(dataset=dataset)))


def test_other_processes_of_a_distributed_run_parse_nothing(spoilt, monkeypatch, detection_config):
    (spoilt / 'annotations/instances_train2017.json').write_text('{')
    monkeypatch.setenv('RANK', '1')
    assert check_datasets(detection_config(spoilt)) == []


def test_importing_the_check_costs_little():
    code = 'import sys, mmlk.data.layout; print({"torch", "mmengine"} & set(sys.modules))'
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == 'set()'
