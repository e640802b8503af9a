"""Configs that inherit ours: one line changes the family, and what it leaves behind is named at once.

Scenarios: 7 variables set in vain, 5 ways to set them rightly, 4 families x (merged, deleted) x
(segmentation, detection), 5 settings that do not fit.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mmlk.cli.config import RUNNER_KEYS, load_config
from mmlk.cli.fit import check_fit
from mmlk.cli.inherit import check_variables
from mmlk.registry import MODELS

CONFIGS = sorted((Path(__file__).parents[2] / 'configs').glob('*.py'))
SEGMENTOR = 'upernet_inceptionnext_t_ade20k.py'
FAMILIES = {
    'mmlk.RecNeXt': 'm3',
    'mmlk.SLaK': 'tiny',
    'mmlk.DCLSConvNeXt': 'tiny',
    'mmlk.InceptionNeXt': 'small',
}

AS_WIDE = ('mmlk.InceptionNeXt', 'mmlk.DCLSConvNeXt')  # as the base, whose weights are deleted


def inheriting(tmp_path, text, base=SEGMENTOR):
    path = tmp_path / 'mine.py'
    path.write_text(f"_base_ = 'mmlk::{base}'\n{text}\n")
    return path


@pytest.mark.parametrize(
    'text, words',
    [
        (
            "vis_backends = [dict(type='TensorboardVisBackend')]",
            r'copied it to visualizer.vis_backends; setting it here changes nothing. Write '
            r'visualizer = dict\(vis_backends=vis_backends\)',
        ),
        ("norm_cfg = dict(type='BN')", r'model = dict\(decode_head=dict\(norm_cfg=norm_cfg\)\)'),
        ('crop_size = (256, 256)', r'model = dict\(data_preprocessor=dict\(size=crop_size\)\)'),
        (
            'crop_size = (256, 256)',
            r'train_dataloader.dataset.pipeline anew \(a list is replaced as a whole\)',
        ),
        (
            "data_root = '/mine'",
            r'train_dataloader = dict\(dataset=dict\(data_root=data_root\)\)',
        ),
        ('max_iters = 10', r'train_cfg = dict\(max_iters=max_iters\)'),
        (
            'train_pipeline = [dict(type="LoadImageFromFile")]',
            r'train_dataloader = dict\(dataset=dict\(pipeline=train_pipeline\)\)',
        ),
    ],
    ids=['vis_backends', 'norm_cfg', 'crop_size', 'list', 'data_root', 'max_iters', 'pipeline'],
)
def test_a_variable_set_in_vain_is_refused_with_the_line_to_write(tmp_path, text, words):
    with pytest.raises(ValueError, match=words) as caught:
        load_config(str(inheriting(tmp_path, text)))
    assert 'mine.py' in str(caught.value)


@pytest.mark.parametrize(
    'text',
    [
        "vis_backends = [dict(type='A')]\nvisualizer = dict(vis_backends=vis_backends)",
        'mine = 3\ntrain_cfg = dict(max_iters=mine)',
        "data_root = '/mine'\ntrain_dataloader = dict(dataset=dict(data_root=data_root))",
        "model = dict(backbone=dict(arch='small'))",
        'vis_backends = {{_base_.vis_backends}}',
    ],
    ids=['passed-on', 'new', 'root-passed-on', 'no-variable', 'same'],
)
def test_a_variable_that_reaches_its_place_passes(tmp_path, text):
    load_config(str(inheriting(tmp_path, text)))


def test_the_middle_of_a_chain_is_checked_too(tmp_path):
    inheriting(tmp_path, 'crop_size = (256, 256)')
    (tmp_path / 'last.py').write_text("_base_ = './mine.py'\nmodel = dict()\n")
    with pytest.raises(ValueError, match='mine.py: crop_size'):
        load_config(str(tmp_path / 'last.py'))


OTHERS = (
    'mmpretrain::resnet/resnet50_8xb256-rsb-a3-100e_in1k.py',
    'mmdet::mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
)


@pytest.mark.parametrize('base', OTHERS)
def test_configs_of_other_packages_are_inherited_and_checked(tmp_path, base):
    """MMEngine notes their scope in every part of what they define, which changes nothing."""
    path = tmp_path / 'mine.py'
    path.write_text(f"_base_ = '{base}'\nmodel = dict(backbone=dict(depth=101))\n")
    assert load_config(str(path)).model.backbone.depth == 101
    path.write_text(f"_base_ = '{base}'\ntrain_pipeline = [dict(type='LoadImageFromFile')]\n")
    with pytest.raises(ValueError, match='train_pipeline is a variable of the base config'):
        load_config(str(path))


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_every_config_of_ours_sets_no_variable_in_vain(path, monkeypatch, tmp_path):
    monkeypatch.setattr('mmlk.cli.inherit.config_root', lambda: tmp_path)
    check_variables(path, RUNNER_KEYS)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_every_config_of_ours_fits(path):
    check_fit(Config.fromfile(str(path)))


@pytest.mark.parametrize('base', [SEGMENTOR, 'mask_rcnn_inceptionnext_t_coco.py'])
@pytest.mark.parametrize('kind', FAMILIES)
@pytest.mark.parametrize('merged', [True, False], ids=['merged', 'deleted'])
def test_another_family_needs_only_the_lines_that_the_error_prints(tmp_path, base, kind, merged):
    delete = '' if merged else '_delete_=True, '
    text = f"model = dict(backbone=dict({delete}type='{kind}', arch='{FAMILIES[kind]}'))"
    first = inheriting(tmp_path, text, base)
    if not merged and kind in AS_WIDE:
        check_fit(Config.fromfile(str(first)))
        return
    with pytest.raises(ValueError, match='Write\nmodel = dict') as caught:
        check_fit(Config.fromfile(str(first)))
    second = tmp_path / 'second.py'
    second.write_text(f"_base_ = './mine.py'\n{str(caught.value).partition('Write')[2]}")
    fixed = Config.fromfile(str(second))
    check_fit(fixed)
    backbone = fixed.model.backbone
    assert (backbone.type, backbone.arch) == (kind, FAMILIES[kind])
    assert ('drop_path_rate' in backbone) == merged  # what fits is kept
    with torch.device('meta'):
        outputs = MODELS.build({k: v for k, v in backbone.items() if k != 'init_cfg'}).out_channels
    reader = fixed.model.get('neck') or fixed.model.decode_head
    assert list(reader.in_channels) == list(outputs)


@pytest.mark.parametrize(
    'changes, words',
    [
        (dict(arch='base'), 'inceptionnext_tiny holds weights of inceptionnext tiny'),
        (dict(arch='huge'), "arch 'huge' is not one of atto, tiny, small, base"),
        (dict(drop_path=0.2), "unexpected keyword argument 'drop_path'"),
        (dict(out_indices=(0, 1, 2)), r'in_index \[0, 1, 2, 3\] names outputs'),
        (dict(out_indices=(1, 2, 3)), r'in_index \[0, 1, 2, 3\] names outputs'),
    ],
    ids=['weights', 'arch', 'typo', 'fewer', 'later'],
)
def test_what_does_not_fit_is_named_before_anything_is_built(changes, words):
    cfg = Config.fromfile(str(CONFIGS[0].with_name(SEGMENTOR)))
    cfg.model.backbone.update(changes)
    with pytest.raises(ValueError, match=words):
        check_fit(cfg)


def test_models_of_others_pass():
    check_fit(Config(dict(model=dict(type='X', backbone=dict(type='ResNet', depth=50)))))
    check_fit(Config(dict(train_cfg=dict())))


def test_channels_of_a_classifiers_head_are_proposed():
    cfg = load_config('inceptionnext_a_in1k', {'model.head.in_channels': 512})
    with pytest.raises(ValueError, match=r'320 channels. Write(.|\n)*head=dict\(in_channels=320\)'):
        check_fit(cfg)
    check_fit(load_config('inceptionnext_a_in1k'))
