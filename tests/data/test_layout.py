"""What is missing is named before training, with layout, source and remedy."""

import subprocess
import sys

import pytest

from mmlk.data.layout import DataError, check_datasets, leaf_datasets


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
        f'train_dataloader: 8 images in {generated}/images/training',
        f'val_dataloader: 3 images in {generated}/images/validation',
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
        (remove_images, 'train_dataloader: no .*jpg file in .*images/training'),
        (remove_label, '1 of 8 images in .* no label map .*ADE_train_00000001.png'),
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


def test_remote_and_custom_data_sets_pass(segmentation_config):
    assert check_datasets(segmentation_config('s3://bucket/ade')) == []
    remote = segmentation_config('bucket', backend_args=dict(backend='petrel'))
    assert check_datasets(remote) == []
    assert check_datasets(dict(train_dataloader=dict(dataset=dict(type='Toy')))) == []


def test_other_processes_of_a_distributed_run_parse_nothing(spoilt, monkeypatch, detection_config):
    (spoilt / 'annotations/instances_train2017.json').write_text('{')
    monkeypatch.setenv('RANK', '1')
    assert check_datasets(detection_config(spoilt)) == []


def test_the_check_imports_the_standard_library_only():
    code = (
        'import sys, mmlk.data.layout; '
        'print({"torch", "numpy", "PIL", "mmengine.runner"} & set(sys.modules))'
    )
    run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == 'set()'
