"""Allowed label values follow from data set, loader and heads; what is loaded is MMSegmentation's.

Scenarios: label conventions x (allowed, refused), bit depths, all pixels ignored.
"""

import io
import re

import numpy as np
import pytest
from PIL import Image

from mmlk.data.labels import LabelRule, look_at_labels

# The conventions that data sets come with.
RULES = {
    'ade20k': LabelRule(150, 255, reduce_zero_label=True),
    'cityscapes': LabelRule(19),
    'two classes and 255': LabelRule(2),
    'zero ignored': LabelRule(5, 0),
    'three of five classes': LabelRule(3, label_map={0: 0, 1: 255, 2: 1, 3: 255, 4: 2}),
    'picked from ADE20K': LabelRule(
        2, 255, True, {i: {0: 0, 12: 1}.get(i, 255) for i in range(150)}
    ),
    'nothing ignored': LabelRule(4, None),
}


def encoded(array, **options):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, 'PNG', **options)
    return buffer.getvalue()


def labels_with(value, dtype=np.uint8):
    labels = np.ones((20, 30), dtype)
    labels[4, 7] = value
    return encoded(labels)


@pytest.mark.parametrize('name', RULES)
def test_values_become_what_mmseg_loads(name, tmp_path):
    loading = pytest.importorskip('mmseg.datasets.transforms')
    rule, path = RULES[name], tmp_path / 'a.png'
    path.write_bytes(encoded(np.arange(256, dtype=np.uint8).reshape(16, 16)))
    sample = loading.LoadAnnotations()(
        dict(
            seg_map_path=str(path),
            reduce_zero_label=rule.reduce_zero_label,
            label_map=rule.label_map,
            seg_fields=[],
        )
    )
    np.testing.assert_array_equal(sample['gt_seg_map'].ravel(), rule.loaded())


@pytest.mark.parametrize('name', RULES)
def test_what_is_allowed_is_what_the_loss_takes(name):
    import torch
    from torch.nn.functional import cross_entropy

    rule = RULES[name]
    ignore = -100 if rule.ignore_index is None else rule.ignore_index
    for value, label in enumerate(rule.loaded().tolist()):
        logits, target = torch.zeros(1, rule.num_classes), torch.tensor([label])
        try:
            loss = cross_entropy(logits, target, ignore_index=ignore, reduction='sum')
        except IndexError:
            assert not rule.allowed()[value], value
        else:
            assert rule.allowed()[value], value
            assert rule.ignored()[value] == (loss == 0)


@pytest.mark.parametrize(
    'name, spelt',
    [
        ('ade20k', '0 (ignored), 1..150 and 255 (ignored)'),
        ('cityscapes', '0..18 and 255 (ignored)'),
        ('two classes and 255', '0..1 and 255 (ignored)'),
        ('zero ignored', '0 (ignored) and 1..4'),
        ('nothing ignored', '0..3'),
    ],
)
def test_what_is_allowed_is_spelt_out(name, spelt):
    assert RULES[name].spelt() == spelt


@pytest.mark.parametrize(
    'rule, value',
    [
        ('ade20k', 0),
        ('ade20k', 150),
        ('ade20k', 255),
        ('cityscapes', 255),
        ('two classes and 255', 255),
        ('two classes and 255', 0),
        ('zero ignored', 0),
        ('three of five classes', 3),
        ('picked from ADE20K', 77),
    ],
)
def test_allowed_values_pass(rule, value):
    assert look_at_labels(labels_with(value), RULES[rule], (20, 30)).problem is None


@pytest.mark.parametrize(
    'rule, value',
    [
        ('ade20k', 151),
        ('cityscapes', 19),
        ('two classes and 255', 2),
        ('two classes and 255', 77),
        ('zero ignored', 255),
        ('three of five classes', 5),
        ('nothing ignored', 255),
    ],
)
def test_values_that_no_class_has_are_found(rule, value):
    problem, _ = look_at_labels(labels_with(value), RULES[rule])
    assert f'label value {value} at row 4, column 7 (1 such pixel(s)); allowed are ' in problem


def test_without_the_number_of_classes_every_value_passes():
    assert look_at_labels(labels_with(77), LabelRule())[0] is None


@pytest.mark.parametrize(
    'content, message',
    [
        (labels_with(3000, np.uint16), 'label value 3000'),
        (labels_with(257, np.uint16), 'label value 257'),
        (encoded(np.zeros((20, 30, 3), np.uint8)), '3 channels .* full ADE20K'),
        (labels_with(1)[:-30], 'cannot be decoded'),
        (encoded(np.ones((20, 31), np.uint8)), 'is 20x31 .* its image is 20x30'),
        (b'', 'is empty'),
        (b'<html>', 'cannot be decoded'),
    ],
    ids=['16-bit', '16-bit-wraps-to-1', 'colour', 'truncated', 'size', 'empty', 'html'],
)
def test_broken_label_maps_are_found(content, message):
    assert re.search(message, look_at_labels(content, LabelRule(150), (20, 30)).problem)


@pytest.mark.parametrize('mode', ['1', 'L', 'P', 'I;16'])
def test_label_maps_of_every_depth_are_read(mode, tmp_path):
    labels = np.zeros((20, 30), np.uint8)
    labels[:, 4:] = 1
    picture = Image.fromarray(labels * 255).convert('1') if mode == '1' else Image.fromarray(labels)
    if mode == 'P':
        picture.putpalette([200, 10, 10, 10, 200, 10])
    if mode == 'I;16':
        picture = Image.fromarray(labels.astype(np.uint16))
    picture.save(tmp_path / 'a.png')
    content = (tmp_path / 'a.png').read_bytes()
    with Image.open(tmp_path / 'a.png') as again:
        assert again.mode == mode
    assert look_at_labels(content, LabelRule(2), (20, 30)) == (None, False)


@pytest.mark.parametrize(
    'rule, value, ignored',
    [
        ('ade20k', 0, True),
        ('two classes and 255', 255, True),
        ('two classes and 255', 0, False),
        ('zero ignored', 0, True),
        ('three of five classes', 3, True),
    ],
)
def test_a_map_of_ignored_pixels_alone_is_noticed(rule, value, ignored):
    content = encoded(np.full((20, 30), value, np.uint8))
    assert look_at_labels(content, RULES[rule]) == (None, ignored)
