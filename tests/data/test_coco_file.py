"""Broken COCO files are refused with one message before training; harmless oddities are counted."""

import json

import pytest

from mmlk.data.coco_file import check_coco_file
from mmlk.data.coco_masks import decoded_counts
from mmlk.data.errors import DataError
from mmlk.data.masks import run_lengths
from mmlk.data.scene import make_scene


@pytest.fixture
def edit(spoilt):
    """Change the training file by a function of its content, then check it."""
    path = spoilt / 'annotations/instances_train2017.json'

    def check(change, **options):
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))
        return check_coco_file(path, spoilt / 'train2017', **options)

    return check


def annotation(**changes):
    return lambda content: content['annotations'][0].update(changes)


def remove(*keys):
    def change(content):
        for key in keys[:-1]:
            content = content[key]
        del content[keys[-1]]

    return change


def repeat_annotation(content):
    content['annotations'].append(content['annotations'][0])


def foreign_categories(content):
    content['categories'] = [
        dict(category, name=f'widget {category["id"]}') for category in content['categories']
    ]


@pytest.mark.parametrize(
    'change, message',
    [
        (
            lambda content: content.update(annotations=[]),
            'no annotation, so there is nothing to learn',
        ),
        (lambda content: content.update(images=[]), 'lists no image|unknown image'),
        (remove('annotations'), r'the list\(s\) annotations are missing'),
        (remove('images', 0, 'height'), r'images\[0\] has no height'),
        (remove('annotations', 0, 'bbox'), 'annotation 1 .*bbox None is not'),
        (annotation(category_id=12), 'annotation 1: unknown category id 12'),
        (annotation(image_id=77), 'annotation 1: unknown image id 77'),
        (annotation(bbox=[1, 2, 3]), r'bbox \[1, 2, 3\] is not'),
        (annotation(bbox=None), 'bbox None is not'),
        (annotation(segmentation=[[500, 10, 520, 10, 520, 30]]), 'lies outside its image'),
        (annotation(segmentation=[[5, -30, 9, -30, 9, -20]]), 'lies outside its image'),
        (annotation(segmentation=dict(size=[9, 9], counts=[81])), r'made for size \[9, 9\]'),
        (annotation(segmentation='10 20 30'), 'neither polygons nor run lengths'),
        (repeat_annotation, 'id 1 appears 2 times in annotations'),
        (foreign_categories, "none of its categories .'widget 1'"),
    ],
    ids=[
        'no-annotations',
        'no-images',
        'no-list',
        'no-height',
        'no-bbox',
        'category',
        'image',
        'short-bbox',
        'null-bbox',
        'mask-right',
        'mask-above',
        'mask-size',
        'mask-text',
        'twice',
        'classes',
    ],
)
def test_a_broken_file_is_refused(edit, change, message):
    with pytest.raises(DataError, match=message):
        edit(change)


def test_run_lengths_must_cover_the_image(edit):
    def change(content):
        image = content['images'][content['annotations'][0]['image_id'] - 1]
        size = [image['height'], image['width']]
        content['annotations'][0]['segmentation'] = dict(size=size, counts=[5, 10])

    with pytest.raises(DataError, match='run lengths cover 15 pixels'):
        edit(change)


@pytest.mark.parametrize('keep', [0.0, 0.3, 0.99])
def test_a_truncated_file_is_refused(spoilt, keep):
    path = spoilt / 'annotations/instances_train2017.json'
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(DataError, match='instances_train2017.json: broken JSON .* truncated'):
        check_coco_file(path, spoilt / 'train2017')


def test_other_json_is_refused(spoilt):
    path = spoilt / 'annotations/instances_train2017.json'
    path.write_text('[1, 2]')
    with pytest.raises(DataError, match='top level is a list'):
        check_coco_file(path, spoilt / 'train2017')


def test_many_problems_are_counted_and_a_few_are_shown(edit):
    def change(content):
        for entry in content['annotations']:
            entry['category_id'] = 999

    with pytest.raises(DataError) as caught:
        edit(change)
    assert str(caught.value).count('999') == 5 and ' more' in str(caught.value)


def test_images_without_objects_are_counted_and_accepted(edit):
    def change(content):
        content['annotations'] = [
            entry for entry in content['annotations'] if entry['image_id'] > 2
        ]

    assert '; 2 images have no object' in edit(change)[0]


def test_a_validation_file_may_have_no_objects(edit):
    lines = edit(lambda content: content.update(annotations=[]), training=False)
    assert '0 annotations' in lines[0]


def test_boxes_beyond_the_image_and_void_ones_are_counted(edit):
    def change(content):
        content['annotations'][0].update(bbox=[-20, 3, 60, 60], segmentation=[])
        content['annotations'][1].update(bbox=[4, 4, 0.2, 5])

    lines = edit(change, masks=False)
    assert '1 boxes' in lines[1] and '1 annotations' in lines[2]


def test_compressed_run_lengths_are_read_as_pycocotools_writes_them():
    codec = pytest.importorskip('pycocotools.mask')
    for instance in make_scene(0, 'training', 1, 128, 160).instances:
        plain = run_lengths(instance.mask)
        code = codec.frPyObjects(plain, *plain['size'])
        assert decoded_counts(code['counts'].decode()) == plain['counts']
