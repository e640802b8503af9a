"""Class folders: what fits is summed up, what does not is named with layout and remedy."""

import shutil

import pytest

from mmlk.data.class_folders import check
from mmlk.data.layout import DataError

CLASSES = ('cat', 'dog', 'newt')


def check_all(cfg):
    return check(cfg, ('train_dataloader', 'val_dataloader'))


@pytest.fixture
def root(tmp_path):
    for split, count in (('train', 2), ('val', 1)):
        for name in CLASSES:
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(count):
                (tmp_path / split / name / f'{index}.JPEG').write_bytes(b'x')
    return tmp_path


def config(root, classes=3, kind='ImageNet', **dataset):
    def loader(split):
        place = dict(split=split) if kind == 'ImageNet' else dict(data_prefix=split)
        return dict(dataset=dict(type=kind, data_root=str(root), **place, **dataset))

    return dict(
        model=dict(head=dict(num_classes=classes)),
        train_dataloader=loader('train'),
        val_dataloader=loader('val'),
    )


@pytest.mark.parametrize('kind', ['ImageNet', 'CustomDataset', 'mmpretrain.ImageNet'])
def test_whole_folders_are_summed_up(root, kind):
    plain = kind if kind == 'CustomDataset' else 'ImageNet'
    cfg = config(root, kind=plain)
    for loader in ('train_dataloader', 'val_dataloader'):
        cfg[loader]['dataset']['type'] = kind
    assert check_all(cfg) == [
        f'train_dataloader: 6 images of 3 classes in {root}/train',
        f'val_dataloader: 3 images of 3 classes in {root}/val',
    ]


def test_wrapped_sets_are_checked_too(root):
    cfg = config(root)
    inner = cfg['train_dataloader']['dataset']
    cfg['train_dataloader']['dataset'] = dict(type='RepeatDataset', times=2, dataset=inner)
    assert len(check_all(cfg)) == 2
    shutil.rmtree(root / 'train' / 'cat')
    with pytest.raises(DataError, match='train_dataloader'):
        check_all(cfg)


def test_lists_of_images_are_read_instead_of_folders(root):
    (root / 'meta').mkdir()
    for split in ('train', 'val'):
        (root / 'meta' / f'{split}.txt').write_text('cat/0.JPEG 0\ndog/0.JPEG 1\n')
    assert 'val_dataloader: 2 images listed in' in check_all(config(root, classes=1000))[1]
    with pytest.raises(DataError, match='no list of images .*/absent.txt'):
        check_all(config(root, ann_file='absent.txt'))


LISTS = {
    'no label': ('cat/0.JPEG 0\ndog/0.JPEG\n', r"line 2: 'dog/0.JPEG' is not"),
    'a blank line': ('cat/0.JPEG 0\n\ndog/0.JPEG 1\n', "line 2: '' is not"),
    'a name for a label': ('cat/0.JPEG cat\n', 'line 1: .* counted from 0'),
    'a negative label': ('cat/0.JPEG -1\n', 'line 1: .* counted from 0'),
    'commas': ('cat/0.JPEG,0\n', "line 1: 'cat/0.JPEG,0' is not"),
    'a label too high': ('cat/0.JPEG 0\ndog/0.JPEG 7\n', 'line 2: label 7 has no class'),
    'labels from 1': ('cat/0.JPEG 1\ndog/0.JPEG 2\nnewt/0.JPEG 3\n', 'line 3: .* subtract 1'),
    'another folder': ('0.JPEG 0\n', 'line 1: there is no file .*val/0.JPEG'),
    'nothing': ('', 'lists no picture'),
}


@pytest.mark.parametrize('fault', LISTS)
def test_a_wrong_list_is_named_with_its_line(root, fault):
    content, message = LISTS[fault]
    (root / 'meta').mkdir()
    (root / 'meta' / 'val.txt').write_text(content)
    with pytest.raises(DataError, match=message) as raised:
        check_all(config(root))
    assert 'val_dataloader' in str(raised.value) and 'Remedy' in str(raised.value)


def test_a_list_in_another_encoding_is_refused(root):
    (root / 'meta').mkdir()
    (root / 'meta' / 'val.txt').write_bytes('zoé/0.JPEG 0\n'.encode('latin-1'))
    with pytest.raises(DataError, match='val.txt is not text in UTF-8'):
        check_all(config(root))


def test_sets_without_labels_are_not_counted(root):
    (root / 'meta').mkdir()
    (root / 'meta' / 'val.txt').write_text('cat/0.JPEG\n')
    cfg = config(root)
    cfg['val_dataloader']['dataset']['with_label'] = False
    assert 'images without labels' in check_all(cfg)[1]


def remove_split(root):
    shutil.rmtree(root / 'val')


def flatten(root):
    for folder in list((root / 'val').iterdir()):
        for file in folder.iterdir():
            file.rename(root / 'val' / f'{folder.name}{file.name}')
        folder.rmdir()


def empty_class(root):
    (root / 'train' / 'dog' / '0.JPEG').unlink()
    (root / 'train' / 'dog' / '1.JPEG').unlink()


def other_files(root):
    for name in CLASSES:
        (root / 'val' / name / '0.JPEG').rename(root / 'val' / name / '0.txt')


FAULTS = {
    'no split': (remove_split, 'val_dataloader: no folder .*/val'),
    'no class folders': (flatten, 'val_dataloader: .*/val has no class folders'),
    'empty class': (empty_class, 'train_dataloader: the class folder .*/train/dog holds no image'),
    'no images': (other_files, 'val_dataloader: the class folder .*/val/cat holds no image'),
}


@pytest.mark.parametrize('fault', FAULTS)
def test_fault_is_named_with_layout_and_remedy(root, fault):
    spoil, message = FAULTS[fault]
    spoil(root)
    with pytest.raises(DataError, match=message) as caught:
        check_all(config(root))
    assert 'Expected layout' in str(caught.value) and 'MMLK_IMAGENET_ROOT' in str(caught.value)


def test_sets_of_different_classes_are_refused(root):
    (root / 'val' / 'newt').rename(root / 'val' / 'eft')
    with pytest.raises(DataError, match="train_dataloader and val_dataloader.*'eft' for one"):
        check_all(config(root))


def test_joined_sets_of_different_classes_are_refused(root):
    cfg = config(root)
    one = cfg['train_dataloader']['dataset']
    shutil.copytree(root / 'train', root / 'more')
    (root / 'more' / 'newt').rename(root / 'more' / 'owl')
    two = dict(type='CustomDataset', data_root=str(root), data_prefix='more')
    cfg['train_dataloader']['dataset'] = dict(type='ConcatDataset', datasets=[one, two])
    with pytest.raises(DataError, match="train_dataloader: .*different class folders, 'newt'"):
        check_all(cfg)


def test_suffixes_of_the_data_set_count(root):
    for path in list(root.rglob('*.JPEG')):
        path.rename(path.with_suffix('.WEBP'))
    with pytest.raises(DataError, match='holds no image'):
        check_all(config(root, kind='CustomDataset'))
    assert len(check_all(config(root, kind='CustomDataset', extensions=('.webp',)))) == 2


def test_names_in_another_order_than_the_folders_are_refused(root):
    with pytest.raises(DataError, match="in another order, starting with 'newt'.*with 'cat'"):
        check_all(config(root, metainfo=dict(classes=CLASSES[::-1])))
    for names in (CLASSES, ('Katze', 'Hund', 'Molch')):
        assert len(check_all(config(root, metainfo=dict(classes=names)))) == 2


def test_head_of_another_class_count_is_refused(root):
    with pytest.raises(DataError, match='3 class folders, but model.head.num_classes is 1000'):
        check_all(config(root, classes=1000))


def test_remote_sets_and_other_kinds_are_left_alone(root):
    assert check_all(config('s3://bucket/imagenet')) == []
    remote = config('/nowhere', backend_args=dict(backend='petrel'))
    assert check_all(remote) == []
