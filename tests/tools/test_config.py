"""Overrides, the data root and the checks that run before a model is built."""

import copy
import inspect
import sys

import pytest
from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.runner import Runner

from mmlk.cli.checks import check_packages, check_types
from mmlk.cli.config import RUNNER_KEYS, apply_overrides, load_config


@pytest.fixture
def cfg(config):
    return Config.fromfile(str(config))


def test_data_root_reaches_every_dataset(cfg):
    cfg.test_evaluator = dict(type='CocoMetric', ann_file=f'{cfg.data_root}/annotations/x.json')
    cfg.train_dataloader.dataset = dict(
        type='RepeatDataset', times=2, dataset=cfg.train_dataloader.dataset
    )

    apply_overrides(cfg, {'data_root': '/elsewhere/'})

    assert cfg.train_dataloader.dataset.dataset.data_root == '/elsewhere'
    assert cfg.val_dataloader.dataset.data_root == '/elsewhere'
    assert cfg.test_dataloader.dataset.data_root == '/elsewhere'
    assert cfg.test_evaluator.ann_file == '/elsewhere/annotations/x.json'


def test_data_root_leaves_similar_paths_alone(cfg):
    cfg.load_from = f'{cfg.data_root}_other/file.pth'
    kept = cfg.load_from
    apply_overrides(cfg, {'data_root': '/elsewhere'})
    assert cfg.load_from == kept


def test_explicit_dataset_root_wins_over_the_common_one(cfg):
    apply_overrides(cfg, {'train_dataloader.dataset.data_root': '/mine', 'data_root': '/elsewhere'})
    assert cfg.train_dataloader.dataset.data_root == '/mine'
    assert cfg.val_dataloader.dataset.data_root == '/elsewhere'


@pytest.mark.parametrize(
    'key, value',
    [
        ('optim_wrapper.optimizer.lr', 0.5),
        ('optim_wrapper.clip_grad.max_norm', 1.0),
        ('optim_wrapper.accumulative_counts', 4),
        ('param_scheduler.0.end', 7),
        ('randomness.seed', 3),
        ('model.backbone.init_cfg', None),
        ('find_unused_parameters', True),
        ('+brand_new', 1),
        ('+train_dataloader.batchsize', 1),
    ],
)
def test_meaningful_override_is_merged(cfg, key, value):
    apply_overrides(cfg, {key: value})
    node = cfg
    for part in key.lstrip('+').split('.'):
        node = node[int(part)] if part.isdigit() else node[part]
    assert node == value


@pytest.mark.parametrize(
    'key, hint',
    [
        ('optim_wraper.optimizer.lr', 'optim_wrapper'),
        ('optim_wrapper.optimzer.lr', 'optimizer'),
        ('train_dataloader.batchsize', 'batch_size'),
        ('model.decode_head.num_class', 'num_classes'),
        ('param_scheduler.3.end', 'list of 1'),
        ('crop_size', 'model.data_preprocessor.size'),
        ('qwertyuiop', 'unknown key'),
    ],
)
def test_misspelt_override_is_refused(cfg, key, hint):
    before = copy.deepcopy(cfg._cfg_dict)
    with pytest.raises(ValueError, match=hint) as caught:
        apply_overrides(cfg, {key: 1})
    assert key in str(caught.value)
    assert cfg._cfg_dict == before


def test_table_of_keys_covers_the_runner():
    assert set(inspect.signature(Runner.__init__).parameters) - {'self', 'cfg'} <= RUNNER_KEYS


def test_missing_config_names_its_neighbours(config):
    with pytest.raises(ValueError, match='no config file.*tiny.py'):
        load_config(str(config.with_name('tinny.py')))


def test_missing_config_names_packaged_ones(tmp_path):
    with pytest.raises(ValueError, match='mmlk::upernet_inceptionnext_b_ade20k.py'):
        load_config(str(tmp_path / 'upernet_inceptionext_b_ade20k.py'))


def test_packaged_config_is_found_by_prefix():
    cfg = load_config('mmlk::upernet_inceptionnext_b_ade20k.py')
    assert cfg.model.backbone.arch == 'base'
    assert cfg.work_dir == 'work_dirs/upernet_inceptionnext_b_ade20k'


@pytest.mark.parametrize(
    'text, hint',
    [
        ('_base_ = "./absent.py"', 'absent.py'),
        ('a = (', 'SyntaxError'),
        ('a = undefined_name', 'undefined_name'),
    ],
)
def test_broken_config_is_one_message(tmp_path, text, hint):
    path = tmp_path / 'broken.py'
    path.write_text(text)
    with pytest.raises(ValueError, match=hint) as caught:
        load_config(str(path))
    assert str(path) in str(caught.value)


def test_environment_sets_the_data_root(tmp_path, monkeypatch):
    monkeypatch.setenv('MMLK_ADE20K_ROOT', '/from/environment')
    cfg = load_config('mmlk::upernet_inceptionnext_b_ade20k.py')
    assert cfg.train_dataloader.dataset.data_root == '/from/environment'


@pytest.mark.parametrize(
    'key, wrong, right',
    [
        ('model.backbone.type', 'mmlk.InceptionNext', 'mmlk.InceptionNeXt'),
        ('model.type', 'EncodeDecoder', 'EncoderDecoder'),
        ('train_dataloader.dataset.type', 'ADE20kDataset', 'ADE20KDataset'),
        ('train_dataloader.dataset.pipeline.1.type', 'LoadAnnotation', 'LoadAnnotations'),
        ('optim_wrapper.optimizer.type', 'AdamWW', 'AdamW'),
        ('default_hooks.checkpoint.type', 'mmlk.SafeCheckpointhook', 'mmlk.SafeCheckpointHook'),
    ],
)
def test_misspelt_type_names_the_right_one(cfg, key, wrong, right):
    cfg.merge_from_dict({key: wrong})
    with pytest.raises(ValueError, match=right) as caught:
        check_types(cfg)
    assert key in str(caught.value)


def test_known_types_pass(cfg):
    check_types(cfg)


def test_foreign_type_is_left_to_its_reader(cfg):
    cfg.model.test_cfg.nms = dict(type='nms', iou_threshold=0.5)
    check_types(cfg)


def test_missing_package_is_named(cfg, monkeypatch):
    monkeypatch.setattr('mmlk.cli.checks.find_spec', lambda name: None)
    with pytest.raises(ValueError, match='mmcv.*doctor'):
        check_packages(cfg)


def test_detection_without_any_operators_is_refused(cfg, monkeypatch):
    cfg.default_scope = 'mmdet'
    monkeypatch.setattr('mmlk.mmcv_ops.source', lambda: None)
    with pytest.raises(ValueError, match='torchvision is not installed either'):
        check_packages(cfg)


@pytest.fixture
def broken_package(tmp_path, monkeypatch):
    """A package with a registry whose modules cannot be imported; returns how they fail."""
    folder = tmp_path / 'mmbroken'
    folder.mkdir()
    (folder / '__init__.py').touch()
    (folder / 'registry.py').write_text(
        'from mmengine import registry\n'
        'MODELS = registry.Registry("model", parent=registry.MODELS, scope="mmbroken",\n'
        '                           locations=["mmbroken.models"])\n'
    )

    def write(line: str) -> None:
        # A layer is registered before the import fails, as SyncBN is in MMSegmentation.
        (folder / 'models.py').write_text(
            'from mmbroken.registry import MODELS\n'
            '@MODELS.register_module(force=True)\n'
            'class WideHead: pass\n'
            f'{line}\n'
        )

    monkeypatch.syspath_prepend(tmp_path)
    yield write
    MODELS.children.pop('mmbroken', None)
    for name in ('mmbroken', 'mmbroken.registry', 'mmbroken.models'):
        sys.modules.pop(name, None)


@pytest.mark.parametrize('prefix', ['', 'mmbroken.'], ids=['default scope', 'by prefix'])
@pytest.mark.parametrize(
    'line, cause',
    [
        ('import mmcv_of_nobody', "ModuleNotFoundError: No module named 'mmcv_of_nobody'"),
        ('from torch import no_such_name', 'ImportError: cannot import name'),
        ('assert False, "MMCV==2.2.0 is used but incompatible"', 'AssertionError: MMCV==2.2.0'),
        (
            'raise RuntimeError("operator torchvision::nms does not exist")',
            'RuntimeError: operator',
        ),
    ],
)
def test_a_package_that_cannot_be_imported_is_named_with_the_cause(
    cfg, broken_package, line, cause, prefix
):
    broken_package(line)
    if not prefix:
        cfg.default_scope = 'mmbroken'
    cfg.model = dict(type=f'{prefix}WideHead', head=dict(type=f'{prefix}WideHead'))
    with pytest.raises(ValueError, match='mmbroken cannot be imported: ') as caught:
        check_types(cfg)
    assert cause in str(caught.value)
