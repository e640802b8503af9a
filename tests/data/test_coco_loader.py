"""The check of a COCO file agrees with MMDetection's own data set on the same file.

Each case is read by both. ``accepted``: the loader yields what the check counts; ``refused``: the
loader fails or yields something else than the file says.

Scenarios: masks, crowds, boxes, sizes, classes, file names, filters; each as a row below.
"""

import json

import numpy as np
import pytest

from mmlk.data.errors import DataError
from mmlk.data.layout import check_datasets
from tests.data.layouts import HEIGHT, WIDTH, write_image

datasets = pytest.importorskip('mmdet.datasets')

NAMES = ('person', 'stop sign', 'sports ball')
NAN = float('nan')


def content():
    """Three images; one object of each class on the first, one on the second, none on the third."""
    images = [dict(id=i, file_name=f'{i}.jpg', height=HEIGHT, width=WIDTH) for i in (1, 2, 3)]
    annotations = [
        dict(
            id=number,
            image_id=image,
            category_id=category,
            bbox=[5, 6, 20, 10],
            area=200.0,
            iscrowd=0,
            segmentation=[[5, 6, 25, 6, 25, 16, 5, 16]],
        )
        for number, (image, category) in enumerate([(1, 1), (1, 2), (1, 3), (2, 3)], start=1)
    ]
    categories = [dict(id=i, name=name) for i, name in enumerate(NAMES, start=1)]
    return dict(images=images, annotations=annotations, categories=categories)


@pytest.fixture
def make(tmp_path):
    """Writes a changed file; returns a config of it."""

    def build(change=lambda content: None, masks=True, **settings):
        written = content()
        written = change(written) or written
        for name in ('1.jpg', '2.jpg', '3.jpg'):
            write_image(tmp_path / 'train' / name)
        (tmp_path / 'train.json').write_text(json.dumps(written))
        steps = [
            dict(type='LoadImageFromFile'),
            dict(type='mmdet.LoadAnnotations', with_bbox=True, with_mask=masks),
        ]
        defaults = dict(metainfo=dict(classes=NAMES), pipeline=steps)
        return dict(
            type='CocoDataset',
            data_root=str(tmp_path),
            ann_file='train.json',
            data_prefix=dict(img='train'),
            **(defaults | settings),
        )

    return build


def check(settings, **more):
    return check_datasets(
        dict(default_scope='mmdet', train_dataloader=dict(dataset=settings), **more),
        ['train_dataloader'],
    )


def load(settings):
    """Every sample as MMDetection loads it, and the classes by which it numbers them."""
    arguments = {key: value for key, value in settings.items() if key != 'type'}
    dataset = datasets.CocoDataset(**arguments)
    return [dataset[index] for index in range(len(dataset))], dataset.metainfo['classes']


def objects(settings):
    """Names of the objects that are learnt from."""
    samples, names = load(settings)
    return [
        names[label]
        for sample in samples
        for label, ignored in zip(sample['gt_bboxes_labels'], sample['gt_ignore_flags'])
        if not ignored
    ]


def every(**changes):
    def change(content):
        for annotation in content['annotations']:
            annotation.update(changes)

    return change


def first(**changes):
    return lambda content: content['annotations'][0].update(changes)


def without(key):
    return lambda content: content['annotations'][0].pop(key) and None


def image(**changes):
    return lambda content: content['images'][0].update(changes)


RUN_LENGTHS = dict(size=[HEIGHT, WIDTH], counts=[100, 50, HEIGHT * WIDTH - 150])

# What the file says, how it is read, and what of the four objects is learnt from.
ACCEPTED = {
    'as it is': (first(), {}, 4),
    'no masks, boxes alone are read': (every(segmentation=None), dict(masks=False), 4),
    'empty masks, boxes alone are read': (every(segmentation=[]), dict(masks=False), 4),
    'mask of NaN, boxes alone are read': (
        first(segmentation=[[NAN] * 6]),
        dict(masks=False),
        4,
    ),
    'mask of two points': (first(segmentation=[[5, 6, 25, 16]]), {}, 3),
    'mask of an odd number of values': (first(segmentation=[[5, 6, 25, 16, 7]]), {}, 3),
    'two points beside a polygon': (
        first(segmentation=[[5, 6, 25, 16], [5, 6, 25, 6, 25, 16]]),
        {},
        4,
    ),
    'run lengths': (first(segmentation=RUN_LENGTHS), {}, 4),
    'run lengths without counts': (first(segmentation=dict(size=[HEIGHT, WIDTH])), {}, 3),
    'one crowd': (first(iscrowd=1), {}, 3),
    'no word on crowds': (without('iscrowd'), {}, 4),
    'marked to be ignored': (first(ignore=1, bbox=None), {}, 3),
    'box outside': (first(bbox=[200, 6, 20, 10]), {}, 3),
    'box of half a pixel': (first(bbox=[5, 6, 0.5, 10]), {}, 3),
    'area of zero': (first(area=0), {}, 3),
    'box beyond the border': (first(bbox=[-5, 6, 20, 10]), {}, 4),
    'a category that is no class': (first(), dict(metainfo=dict(classes=NAMES[:2])), 2),
    'image without objects filtered': (
        first(),
        dict(filter_cfg=dict(filter_empty_gt=True, min_size=32)),
        4,
    ),
    'file names in folders': (image(file_name='../train/1.jpg'), {}, 4),
}

REFUSED = {
    'no mask': (without('segmentation'), {}, 'has no segmentation'),
    'empty mask': (first(segmentation=[]), {}, 'annotation 1 .* has no segmentation'),
    'flat mask': (first(segmentation=[5, 6, 25, 6, 25, 16]), {}, 'neither polygons nor run'),
    'run lengths of another size': (
        first(segmentation=dict(size=[9, 9], counts=[81])),
        {},
        r'made for size \[9, 9\]',
    ),
    'no box': (without('bbox'), {}, 'bbox None is not'),
    'three numbers': (first(bbox=[1, 2, 3]), {}, 'bbox .* is not'),
    'no area': (without('area'), {}, 'area None'),
    'area as text': (first(area='200'), {}, "area '200'"),
    'all crowds': (every(iscrowd=1), {}, 'none of its 4 annotations .* 4 are to be ignored'),
    'all without area': (every(area=0), {}, '4 have no area'),
    'all outside': (every(bbox=[200, 6, 20, 10]), {}, '4 lie outside'),
    'all masks of two points': (every(segmentation=[[5, 6, 25, 16]]), {}, '4 are to be ignored'),
    'classes in another order': (
        first(),
        dict(metainfo=dict(classes=NAMES[::-1])),
        "numbered otherwise .*'person' would be learnt as 'sports ball'.*"
        r"\('person', 'stop sign', 'sports ball'\)",
    ),
    'a class misspelt at the end': (
        first(),
        dict(metainfo=dict(classes=(*NAMES[:2], 'sports bal'))),
        "'sports bal' is not in the file, did you mean 'sports ball'",
    ),
    'a class misspelt at the start': (
        first(),
        dict(metainfo=dict(classes=('persn', *NAMES[1:]))),
        "did you mean 'person'",
    ),
    'a class that the file lacks': (
        first(),
        dict(metainfo=dict(classes=('cat', *NAMES))),
        "'person' would be learnt as 'cat'",
    ),
    'a category name twice': (
        lambda content: content['categories'].insert(0, dict(id=9, name='person')),
        {},
        'numbered otherwise',
    ),
    'filter leaves nothing': (
        first(),
        dict(filter_cfg=dict(min_size=500)),
        'leaves none of 3 images',
    ),
    'image ids as text': (every(image_id='1'), {}, 'unknown image id 1'),
}


@pytest.mark.parametrize('case', ACCEPTED)
def test_accepted_files_are_read_and_counted_alike(make, case):
    change, options, count = ACCEPTED[case]
    settings = make(change, **options)
    lines = check(settings)
    assert lines[0].startswith('train_dataloader: 3 images, 4 annotations')
    assert len(objects(settings)) == count


@pytest.mark.parametrize('case', REFUSED)
def test_refused_files_fail_in_the_loader_or_teach_something_else(make, case):
    change, options, message = REFUSED[case]
    settings = make(change, **options)
    with pytest.raises(DataError, match=message):
        check(settings)
    try:
        learnt = objects(settings)
    except Exception:
        return
    written = [NAMES[entry['category_id'] - 1] for entry in content()['annotations']]
    assert learnt != written


# The loader does not return from these (a NaN polygon fills the memory), or computes with NaN.
UNREADABLE = {
    'NaN in a mask': (first(segmentation=[[5, 6, NAN, 6, 25, 16]]), 'no finite number'),
    'infinity in a mask': (first(segmentation=[[5, 6, float('inf'), 6, 25, 16]]), 'no finite'),
    'NaN in a box': (first(bbox=[5, NAN, 20, 10]), r'bbox \[5, nan'),
    'NaN as area': (first(area=NAN), 'area nan'),
    'NaN as height': (image(height=NAN), 'height nan'),
    'null as width': (image(width=None), 'width None'),
    'negative height': (image(height=-4), 'height -4'),
    'unknown category': (first(category_id=77), 'unknown category id 77'),
}


@pytest.mark.parametrize('case', UNREADABLE)
def test_values_that_cannot_be_used_are_refused(make, case):
    change, message = UNREADABLE[case]
    with pytest.raises(DataError, match=message):
        check(make(change))


def test_one_text_is_no_list_of_classes(make):
    settings = make(metainfo=dict(classes='sports ball'))
    with pytest.raises(DataError, match=r"'sports ball' is one text.*\('sports ball',\)"):
        check(settings)


def test_classes_may_stand_in_a_text_file(make, tmp_path):
    (tmp_path / 'classes.txt').write_text('\n'.join(NAMES))
    settings = make(metainfo=dict(classes=str(tmp_path / 'classes.txt')))
    check(settings)
    assert len(objects(settings)) == 4
    (tmp_path / 'classes.txt').write_text('\n'.join(NAMES[::-1]))
    with pytest.raises(DataError, match='numbered otherwise'):
        check(settings)


def test_a_class_named_twice_is_refused(make):
    with pytest.raises(DataError, match="names 'person' twice"):
        check(make(metainfo=dict(classes=('person', 'person'))))


def test_a_trailing_class_without_category_is_said(make):
    settings = make(metainfo=dict(classes=(*NAMES, 'zebra')))
    assert any("no category for the class(es) 'zebra'" in line for line in check(settings))
    assert len(objects(settings)) == 4


def test_images_that_the_filter_leaves_out_may_be_absent(make, tmp_path):
    settings = make(filter_cfg=dict(filter_empty_gt=True))
    (tmp_path / 'train/3.jpg').unlink()
    check(settings)
    assert len(load(settings)[0]) == 2
    del settings['filter_cfg']
    with pytest.raises(DataError, match=r'image 3: no file .*3\.jpg'):
        check(settings)
    with pytest.raises(FileNotFoundError):
        load(settings)


def test_names_that_lead_out_of_the_folder_are_said(make, tmp_path):
    write_image(tmp_path / 'elsewhere/1.jpg')
    settings = make(image(file_name=str(tmp_path / 'elsewhere/1.jpg')))
    assert any('1 file names' in line and 'lead out of' in line for line in check(settings))
    assert load(settings)[0][0]['img_path'] == str(tmp_path / 'elsewhere/1.jpg')


def test_a_test_set_needs_no_annotations(make):
    settings = make(lambda content: content.pop('annotations') and None, test_mode=True)
    assert '0 annotations' in check(settings)[0]
    assert len(load(settings)[0]) == 3


def test_deep_nesting_is_refused_as_the_loader_does(make, tmp_path):
    settings = make()
    depth = 200_000
    (tmp_path / 'train.json').write_text('{"images": ' + '[' * depth + ']' * depth + '}')
    with pytest.raises(DataError, match='nested too deeply'):
        check(settings)
    with pytest.raises(RecursionError):
        load(settings)


@pytest.mark.parametrize(
    'theirs, passes',
    [('train.json', True), ('copy.json', True), ('other.json', False), ('absent.json', False)],
)
def test_the_evaluator_must_read_the_file_of_the_loader(make, tmp_path, theirs, passes):
    settings = make()
    (tmp_path / 'copy.json').write_bytes((tmp_path / 'train.json').read_bytes())
    (tmp_path / 'other.json').write_text(json.dumps(content() | dict(images=[])))
    evaluator = [dict(type='CocoMetric', ann_file=str(tmp_path / theirs))]
    if passes:
        check(settings, train_evaluator=evaluator)
    else:
        with pytest.raises(DataError, match=f'train_evaluator .*{theirs}'):
            check(settings, train_evaluator=evaluator)


def test_masks_agree_with_the_file(make):
    """The loader's bitmap of the polygon above, in closed form: the half-open box it outlines."""
    masks = load(make())[0][0]['gt_masks'].masks
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[6:16, 5:25] = 1
    np.testing.assert_array_equal(masks[0], expected)
