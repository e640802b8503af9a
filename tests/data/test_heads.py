"""Classes, labels and heads are compared before anything is built.

Scenarios: heads x (too few, too many, right), ignored labels, class weights, detectors, open
vocabulary, steps that learn the allowed labels.
"""

import copy

import pytest

from mmlk.cli.config import load_config
from mmlk.data.errors import DataError
from mmlk.data.heads import check_heads, label_rule
from mmlk.data.opened import open_datasets

LOADERS = ('train_dataloader', 'val_dataloader')
CLASSES = dict(metainfo=dict(classes=('ground', 'road')))


def segmentation(heads=2, settings=CLASSES, evaluator=None, **model):
    """A config of two classes; ``heads`` are the num_classes of decode and auxiliary head."""
    decode, auxiliary = heads if isinstance(heads, tuple) else (heads, heads)
    dataset = dict(
        dict(type='BaseSegDataset', data_root='', pipeline=[dict(type='mmlk.CheckSample')]),
        **settings,
    )
    return dict(
        default_scope='mmseg',
        train_dataloader=dict(dataset=dataset),
        val_dataloader=dict(dataset=copy.deepcopy(dataset)),
        val_evaluator=dict(type='IoUMetric', **(evaluator or {})),
        model=dict(
            decode_head=dict(num_classes=decode, **model),
            auxiliary_head=[dict(num_classes=auxiliary, **model)],
        ),
    )


def detection(count, classes=('disc',), **settings):
    dataset = dict(type='CocoDataset', metainfo=dict(classes=classes), **settings)
    return dict(
        default_scope='mmdet',
        train_dataloader=dict(dataset=dataset),
        model=dict(
            rpn_head=dict(num_classes=1),
            roi_head=dict(
                bbox_head=[dict(num_classes=count)] * 3, mask_head=dict(num_classes=count)
            ),
        ),
    )


def check(cfg):
    return check_heads(cfg, open_datasets(cfg, LOADERS))


def test_a_fitting_project_passes_in_silence():
    pytest.importorskip('mmseg')
    assert check(segmentation()) == []


@pytest.mark.parametrize('heads', [1, (2, 1), (1, 2)])
def test_too_few_outputs_are_refused_with_the_lines_to_write(heads):
    with pytest.raises(DataError) as caught:
        check(segmentation(heads))
    message = str(caught.value)
    assert message.startswith('train_dataloader: BaseSegDataset has 2 classes')
    assert 'decode_head=dict(num_classes=2)' in message
    assert 'num_classes=2 in auxiliary_head[0]' in message


def test_nineteen_outputs_for_ade20k_are_refused():
    with pytest.raises(DataError, match="150 classes.*num_classes=19.*type='BaseSegDataset'"):
        check(segmentation(19, dict(type='ADE20KDataset')))


def test_own_classes_on_a_published_data_set_are_refused():
    with pytest.raises(DataError, match=r'ADE20KDataset refuses.*not a subset'):
        check(segmentation(2, dict(type='ADE20KDataset', **CLASSES)))


def test_more_outputs_than_classes_are_said_once():
    (note,) = check(segmentation(150))
    assert 'warning' in note and 'num_classes=150' in note and 'num_classes=2' in note


def test_a_picked_subset_counts_its_own_classes():
    subset = dict(type='ADE20KDataset', metainfo=dict(classes=('wall', 'person')))
    assert check(segmentation(2, subset)) == []


def test_several_decode_heads_are_all_looked_at():
    cfg = segmentation()
    cfg['model'] = dict(decode_head=[dict(num_classes=2), dict(num_classes=1)])
    with pytest.raises(DataError, match=r'decode_head\[1\].num_classes=1'):
        check(cfg)


@pytest.mark.parametrize(
    'cfg, message',
    [
        (segmentation(ignore_index=0), 'ignore_index=255, model.decode_head has 0'),
        (segmentation(evaluator=dict(ignore_index=0)), 'evaluator IoUMetric has 0'),
        (
            segmentation(settings=dict(CLASSES, ignore_index=0, reduce_zero_label=True)),
            'ignore_index=0, but the loader writes 255 for what reduce_zero_label leaves out',
        ),
        (
            segmentation(
                settings=dict(
                    type='ADE20KDataset', reduce_zero_label=False, ignore_index=7,
                    metainfo=dict(classes=('wall', 'person')),
                ),
                ignore_index=7,
                evaluator=dict(ignore_index=7),
            ),
            'for what metainfo.classes leaves out',
        ),
        (
            segmentation(
                settings=dict(
                    CLASSES, pipeline=[dict(type='LoadAnnotations', reduce_zero_label=True)]
                )
            ),
            'reduce_zero_label=False, its step LoadAnnotations True',
        ),
        (
            segmentation(loss_decode=dict(type='CrossEntropyLoss', class_weight=[1.0] * 20)),
            r'num_classes=2 and a loss with 20 class weights.*class_weight=None',
        ),
    ],
    ids=['head', 'evaluator', 'reduce-zero', 'subset', 'step', 'weights'],
)  # fmt: skip
def test_contradictions_are_refused(cfg, message):
    with pytest.raises(DataError, match=message):
        check(cfg)


def test_one_ignored_label_everywhere_passes():
    settings = dict(CLASSES, ignore_index=0)
    cfg = segmentation(settings=settings, ignore_index=0, evaluator=dict(ignore_index=0))
    assert check(cfg) == []


@pytest.mark.parametrize('count', [1, 80, 2])
def test_detectors_need_exactly_as_many_outputs_as_classes(count):
    pytest.importorskip('mmdet')
    if count == 1:
        assert check(detection(count)) == []
        return
    with pytest.raises(DataError) as caught:
        check(detection(count))
    assert 'CocoDataset has 1 classes' in str(caught.value)
    assert 'mask_head=dict(num_classes=1)' in str(caught.value)


def test_panoptic_sets_count_their_things():
    cfg = detection(80)
    cfg['train_dataloader']['dataset'] = dict(
        type='CocoPanopticDataset', data_prefix=dict(img='', seg='')
    )
    assert check(cfg) == []


def test_names_that_are_the_models_input_are_not_counted():
    assert check(detection(256, return_classes=True)) == []


def test_check_steps_learn_the_allowed_labels():
    cfg = segmentation((2, 5), settings=dict(CLASSES, ignore_index=0), ignore_index=0,
                       evaluator=dict(ignore_index=0))  # fmt: skip
    cfg['tta_pipeline'] = [dict(type='mmlk.CheckSample')]
    check(cfg)
    for pipeline in [
        *(cfg[loader]['dataset']['pipeline'] for loader in LOADERS),
        cfg['tta_pipeline'],
    ]:
        step = pipeline[0]
        assert step == dict(type='mmlk.CheckSample', num_classes=2, ignore_index=0)
    (opened, _) = open_datasets(cfg, LOADERS)
    rule = label_rule(opened.dataset, cfg)
    assert (rule.num_classes, rule.ignore_index, rule.reduce_zero_label) == (2, 0, False)


def test_steps_that_say_it_themselves_are_left_alone():
    stated = dict(type='mmlk.CheckSample', num_classes=1, ignore_index=9)
    cfg = segmentation(settings=dict(CLASSES, pipeline=[dict(stated)]))
    check(cfg)
    assert cfg['train_dataloader']['dataset']['pipeline'] == [stated]


@pytest.mark.parametrize(
    'name',
    [
        'upernet_inceptionnext_t_ade20k.py',
        'upernet_inceptionnext_a_ade20k_mini.py',
        'mask_rcnn_recnext_m3_coco.py',
        'mask_rcnn_recnext_m0_coco_mini.py',
        'cascade_mask_rcnn_slak_t_coco.py',
    ],
)
def test_recipes_of_this_package_fit_their_data(name, tmp_path):
    cfg = load_config(f'mmlk::{name}', dict(data_root=str(tmp_path)))
    assert check(cfg) == []
