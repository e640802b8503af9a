"""Detection configs: what the recipes fix, down to the rate and decay of every parameter."""

from collections import Counter

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope

import mmlk
from mmlk.cli.complexity import measure
from mmlk.cli.config import apply_overrides
from tests.configs.test_configs import CONFIGS, load, metafile_models
from tests.golden_weights import load_golden

DETECTION = [name for name in CONFIGS if name.startswith(('mask_rcnn', 'cascade_mask_rcnn'))]
PUBLISHED = [name for name in DETECTION if not name.endswith('_mini.py')]
DCLS = load_golden('dcls_convnext/optimizer-groups')['cases']
SLAK = load_golden('slak/lr-groups')['cases']


def build_on_meta(config):
    """The whole detector without storage: names and shapes of every parameter."""
    from mmdet.registry import MODELS as DETECTORS

    init_default_scope('mmdet')
    with torch.device('meta'):
        return DETECTORS.build(config.model)


def groups_by_name(config, detector):
    """(rate, decay) of every parameter, as the config's optimizer constructor sets them."""
    settings = dict(config.optim_wrapper.to_dict(), type='OptimWrapper')
    groups = build_optim_wrapper(detector, settings).optimizer.param_groups
    by_id = {
        id(p): (group['lr'], group['weight_decay']) for group in groups for p in group['params']
    }
    return {name: by_id[id(p)] for name, p in detector.named_parameters()}


@pytest.mark.parametrize('name', PUBLISHED)
@pytest.mark.slow
def test_detector_costs_what_the_model_zoo_states(name):
    parts = measure(build_on_meta(load(name)).eval(), (800, 1280))
    stated = metafile_models()[name.removesuffix('.py')]['Metadata']
    assert stated['Parameters'] == round(sum(part.parameters for part in parts) / 1e6, 2)
    assert stated['FLOPs'] == round(sum(part.macs for part in parts) / 1e9, 1)
    assert stated['AMP'] is (load(name).optim_wrapper.type == 'AmpOptimWrapper')


@pytest.mark.parametrize(
    ('name', 'case'),
    [
        ('mask_rcnn_dcls_convnext_t_coco.py', 2),
        ('cascade_mask_rcnn_dcls_convnext_t_coco.py', 3),
        ('cascade_mask_rcnn_dcls_convnext_s_coco.py', 4),
        ('cascade_mask_rcnn_dcls_convnext_b_coco.py', 5),
    ],
)
def test_dcls_rates_and_decay_are_the_authors_for_every_parameter(name, case):
    golden, config = DCLS[case], load(name)
    assert config.optim_wrapper.optimizer.lr == golden['base_lr']
    got = groups_by_name(config, build_on_meta(config))
    groups = [
        (name, group)
        for group in golden['groups']
        for name in group['names']
        if name.startswith('backbone.')
    ]
    backbone = [key for key in got if key.startswith('backbone.')]
    assert {key: got[key][0] for key in backbone} == pytest.approx(
        {key: group['lr'] for key, group in groups}, rel=1e-12
    )
    assert {key: got[key][1] for key in backbone} == {
        key: group['weight_decay'] for key, group in groups
    }
    heads = {key: value for key, value in got.items() if not key.startswith('backbone.')}
    assert {rate for rate, _ in heads.values()} == {golden['base_lr']}
    assert all(decay == 0 for key, (_, decay) in heads.items() if key.endswith('bias'))
    assert heads['neck.lateral_convs.0.conv.weight'][1] == golden['base_weight_decay']


@pytest.mark.parametrize(
    'name', ['cascade_mask_rcnn_slak_t_coco.py', 'cascade_mask_rcnn_slak_t_36e_coco.py']
)
def test_slak_rates_and_decay_are_the_authors_for_every_parameter(name):
    golden = next(case for case in SLAK if case['name'].startswith('COCO'))
    config = load(name)
    optimizer = config.optim_wrapper.optimizer
    assert (optimizer.lr, optimizer.weight_decay) == (golden['base_lr'], golden['weight_decay'])
    got = groups_by_name(config, build_on_meta(config))
    scales = golden['lr_scale_by_prefix']
    for key, (rate, _) in got.items():
        prefix = next((prefix for prefix in scales if key.startswith(f'{prefix}.')), 'decode_head')
        assert rate == pytest.approx(scales[prefix] * golden['base_lr'], rel=1e-9), key
    # Each recorded group as often as the backbone has it; the recorded head is a weight and a bias.
    counts = Counter(value for key, value in got.items() if key.startswith('backbone.'))
    counts.update([(golden['base_lr'], golden['weight_decay']), (golden['base_lr'], 0.0)])
    assert counts == {
        (group['lr'], group['weight_decay']): group['tensors'] for group in golden['groups']
    }


@pytest.mark.parametrize('name', [name for name in PUBLISHED if 'recnext' in name])
def test_recnext_recipe_is_plain(name):
    optimizer = load(name).optim_wrapper
    assert optimizer.to_dict() == dict(
        type='OptimWrapper', optimizer=dict(type='AdamW', lr=2e-4, weight_decay=0.05)
    )
    assert load(name).model.backbone.norm_eval is False


def test_drop_path_is_the_authors_where_they_published_no_result():
    assert load('mask_rcnn_dcls_convnext_t_coco.py').model.backbone.drop_path_rate == 0.4


@pytest.mark.parametrize('name', [name for name in PUBLISHED if name.startswith('cascade')])
def test_cascade_stages_get_stricter(name):
    model = load(name).model
    assert [stage.assigner.pos_iou_thr for stage in model.train_cfg.rcnn] == [0.5, 0.6, 0.7]
    spreads = [head.bbox_coder.target_stds[0] for head in model.roi_head.bbox_head]
    assert spreads == [0.1, 0.05, 0.033]
    assert {head.loss_bbox.type for head in model.roi_head.bbox_head} == {'GIoULoss'}
    assert {head.norm_cfg.type for head in model.roi_head.bbox_head} == {'SyncBN'}


@pytest.mark.parametrize('name', PUBLISHED)
def test_data_root_reaches_every_path(name, monkeypatch):
    monkeypatch.setenv('MMLK_COCO_ROOT', '/somewhere/else')
    config = load(name)
    apply_overrides(config, dict(data_root='/third/place'))
    for loader in (config.train_dataloader, config.val_dataloader, config.test_dataloader):
        assert loader.dataset.data_root == '/third/place'
    for metric in (config.val_evaluator, config.test_evaluator):
        assert metric.ann_file == '/third/place/annotations/instances_val2017.json'
    assert load(name).data_root == '/somewhere/else'


@pytest.mark.parametrize('name', DETECTION)
def test_best_and_last_checkpoints_are_kept_and_every_epoch_is_evaluated(name):
    config = load(name)
    assert config.default_hooks.checkpoint.save_best == 'coco/bbox_mAP'
    assert config.default_hooks.checkpoint.max_keep_ckpts == 2
    assert config.train_cfg.max_epochs % config.train_cfg.val_interval == 0


def test_mini_classes_stand_in_the_order_of_the_annotation_file():
    from mmlk.data.classes import COCO

    config = Config.fromfile(mmlk.config_path('_base_/datasets/coco_mini.py'))
    identities = [COCO[name] for name in config.metainfo.classes]
    assert identities == sorted(identities)
