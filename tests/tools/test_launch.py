"""Batch statement, accumulation, mixed precision and what changes on a machine without a GPU."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config

from mmlk.cli import batch
from mmlk.cli import device as launch
from mmlk.cli.evaluation import draw_predictions, enable_tta, store_predictions
from mmlk.engine import SingleImageNormHook


@pytest.fixture
def cfg(config):
    return Config.fromfile(str(config))


@pytest.fixture
def device(monkeypatch):
    """Setter of the device that mmengine would report."""
    return lambda name: monkeypatch.setattr(launch, 'get_device', lambda: name)


def test_batch_of_the_recipe_is_confirmed(cfg):
    text, departs = batch.batch_statement(cfg, processes=8)
    assert 'Effective batch size 16 = 8 process(es) x 2 image(s) x 1' in text
    assert not departs


def test_smaller_batch_is_said_with_every_remedy_the_simplest_first(cfg):
    text, departs = batch.batch_statement(cfg, processes=1)
    assert departs
    assert 'tuned for 16' in text
    remedies = text.partition('Remedy: ')[2].split(', or ')
    assert remedies[0] == 'train_dataloader.batch_size=16, if memory allows'
    assert remedies[1].startswith('--accumulate 8')
    assert remedies[2] == '--auto-scale-lr (learning rate x 0.125).'


@pytest.mark.parametrize('size, processes', [(2, 1), (64, 1), (16, 8), (3, 5)])
def test_no_batch_speaks_of_published_numbers(cfg, size, processes):
    cfg.train_dataloader.batch_size = size
    assert 'publish' not in batch.batch_statement(cfg, processes)[0]


def test_larger_batch_needs_no_more_memory(cfg):
    cfg.train_dataloader.batch_size = 4
    text, _ = batch.batch_statement(cfg, processes=8)
    assert 'Remedy: train_dataloader.batch_size=2, or' in text


def test_remedy_counts_accumulation_that_is_there(cfg):
    cfg.optim_wrapper.accumulative_counts = 2
    text, _ = batch.batch_statement(cfg, processes=1)
    assert 'Effective batch size 4 ' in text
    assert 'accumulative_counts=8' in text


def test_batch_that_accumulation_cannot_reach_offers_scaling_only(cfg):
    text, departs = batch.batch_statement(cfg, processes=3)
    assert departs
    assert '--accumulate' not in text
    assert 'batch_size' not in text


def test_scaled_rate_is_no_departure(cfg):
    batch.enable_lr_scaling(cfg)
    text, departs = batch.batch_statement(cfg, processes=4)
    assert 'scaled by 0.5' in text
    assert not departs


def test_recipe_without_batch_size_is_said(cfg):
    cfg.auto_scale_lr = None
    text, departs = batch.batch_statement(cfg, processes=1)
    assert 'does not say' in text
    assert not departs
    with pytest.raises(ValueError, match='base_batch_size'):
        batch.enable_lr_scaling(cfg)


def test_scaling_and_accumulation_exclude_each_other(cfg):
    batch.accumulate(cfg, 2)
    with pytest.raises(ValueError, match='accumulation steps'):
        batch.enable_lr_scaling(cfg)


def test_accumulation_stretches_what_counts_iterations(cfg):
    cfg.param_scheduler = [
        dict(type='LinearLR', begin=0, end=10, by_epoch=False),
        dict(type='MultiStepLR', milestones=[8, 11], by_epoch=True),
        dict(type='MultiStepLR', milestones=[8, 11], by_epoch=False),
    ]
    batch.accumulate(cfg, 8)
    assert cfg.optim_wrapper.accumulative_counts == 8
    assert (cfg.train_cfg.max_iters, cfg.train_cfg.val_interval) == (32, 8000)
    assert (cfg.param_scheduler[0].begin, cfg.param_scheduler[0].end) == (0, 80)
    assert cfg.param_scheduler[1].milestones == [8, 11]
    assert cfg.param_scheduler[2].milestones == [64, 88]
    assert cfg.default_hooks.checkpoint.interval == 16
    assert not batch.batch_statement(cfg, processes=1)[1]


def test_accumulation_leaves_epochs_alone(cfg):
    cfg.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=12, val_interval=1)
    batch.accumulate(cfg, 4)
    assert cfg.train_cfg == dict(type='EpochBasedTrainLoop', max_epochs=12, val_interval=1)


def test_accumulation_needs_a_positive_number(cfg):
    with pytest.raises(ValueError, match='at least 1'):
        batch.accumulate(cfg, 0)


def test_amp_needs_a_gpu(cfg, device):
    device('cpu')
    with pytest.raises(ValueError, match='needs a GPU'):
        launch.enable_amp(cfg)


def test_amp_converts_the_wrapper(cfg, device):
    device('cuda')
    assert 'float16' in launch.enable_amp(cfg)
    assert cfg.optim_wrapper.type == 'AmpOptimWrapper'
    assert cfg.optim_wrapper.loss_scale == 'dynamic'


def test_amp_of_the_recipe_keeps_its_settings(cfg, device):
    device('cuda')
    cfg.optim_wrapper.update(type='AmpOptimWrapper', dtype='bfloat16', loss_scale=1.0)
    launch.enable_amp(cfg)
    assert (cfg.optim_wrapper.dtype, cfg.optim_wrapper.loss_scale) == ('bfloat16', 1.0)


def test_amp_refuses_a_wrapper_with_its_own_precision(cfg, device):
    device('cuda')
    cfg.optim_wrapper.type = 'ApexOptimWrapper'
    with pytest.raises(ValueError, match='ApexOptimWrapper'):
        launch.enable_amp(cfg)


def test_recipe_in_mixed_precision_trains_in_float32_on_a_cpu(cfg, device):
    device('cpu')
    cfg.launcher = 'none'
    cfg.optim_wrapper.update(type='AmpOptimWrapper', dtype='float16', loss_scale='dynamic')
    assert 'float32' in ' '.join(launch.adapt_to_device(cfg))
    assert cfg.optim_wrapper.type == 'OptimWrapper'
    assert 'loss_scale' not in cfg.optim_wrapper


def test_processes_without_a_gpu_get_gloo_and_plain_norms(cfg, device):
    device('cpu')
    cfg.launcher = 'pytorch'
    notes = ' '.join(launch.adapt_to_device(cfg))
    assert 'gloo' in notes
    assert 'SyncBN' in notes
    assert cfg.model.backbone.norm_cfg == dict(type='BN', requires_grad=True)
    assert cfg.model.decode_head.norm_cfg.type == 'BN'
    assert cfg.model_wrapper_cfg.device_ids is None
    assert cfg.env_cfg.dist_cfg.backend == 'gloo'


@pytest.mark.parametrize('name, launcher', [('cuda', 'pytorch'), ('cuda', 'none'), ('cpu', 'none')])
def test_everything_else_is_left_alone(cfg, device, name, launcher):
    device(name)
    cfg.launcher = launcher
    before = cfg.pretty_text
    assert launch.adapt_to_device(cfg) == []
    assert cfg.pretty_text == before


@pytest.mark.parametrize('synchronised', [False, True])
def test_single_images_get_the_norm_hook_where_norms_are_not_synchronised(cfg, synchronised):
    batch.allow_single_images(cfg, synchronised)
    expected = None if synchronised else [dict(type='mmlk.SingleImageNormHook')]
    assert cfg.get('custom_hooks') == expected


def test_norm_with_one_value_per_channel_uses_running_statistics():
    norm = torch.nn.BatchNorm2d(3)
    norm.running_mean.fill_(2.0)
    said = []
    runner = SimpleNamespace(
        model=torch.nn.Sequential(norm), logger=SimpleNamespace(info=said.append)
    )
    hook, single, several = SingleImageNormHook(), dict(inputs=[0]), dict(inputs=[0, 0])
    hook.before_train_iter(runner, 0, several)
    with pytest.raises(ValueError, match='more than 1 value per channel'):
        norm(torch.ones(1, 3, 1, 1))
    hook.after_train_iter(runner, 0, data_batch=several, outputs={})
    hook.before_train_iter(runner, 1, single)
    torch.testing.assert_close(
        norm(torch.full((1, 3, 1, 1), 5.0)), torch.full((1, 3, 1, 1), 3.0), rtol=1e-4, atol=0
    )
    assert norm.training and len(said) == 1
    assert norm.running_mean.tolist() == [2.0] * 3

    x = torch.randn(1, 3, 4, 4)
    torch.testing.assert_close(norm(x), torch.nn.BatchNorm2d(3)(x))
    assert norm.running_mean.tolist() != [2.0] * 3
    hook.after_train_iter(runner, 1, data_batch=single, outputs={})
    assert not norm._forward_hooks and not norm._forward_pre_hooks


@pytest.mark.parametrize(
    'launcher, variables',
    [
        ('pytorch', dict(RANK='0', WORLD_SIZE='1', LOCAL_RANK='0', MASTER_ADDR='127.0.0.1')),
        (
            'slurm',
            dict(SLURM_PROCID='0', SLURM_NTASKS='1', SLURM_LOCALID='0', MASTER_ADDR='127.0.0.1'),
        ),
        (
            'mpi',
            dict(
                OMPI_COMM_WORLD_RANK='0',
                OMPI_COMM_WORLD_SIZE='1',
                OMPI_COMM_WORLD_LOCAL_RANK='0',
                MASTER_ADDR='127.0.0.1',
            ),
        ),
    ],
)
def test_group_is_opened_from_each_launchers_variables(
    cfg, device, monkeypatch, launcher, variables
):
    device('cpu')
    for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR', 'MASTER_PORT'):
        monkeypatch.setenv(name, 'x')  # so that the context restores what is set below
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    opened = []
    monkeypatch.setattr(
        torch.distributed, 'init_process_group', lambda *args, **kwargs: opened.append(args)
    )
    cfg.launcher = launcher
    launch.adapt_to_device(cfg)
    launch.open_process_group(cfg)
    assert opened == [('gloo',)]


def test_group_without_a_launcher_says_how_to_start(cfg, device, monkeypatch):
    device('cpu')
    for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_ADDR'):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv('MASTER_PORT', '29500')
    cfg.launcher = 'pytorch'
    launch.adapt_to_device(cfg)
    with pytest.raises(ValueError, match='RANK.*torchrun'):
        launch.open_process_group(cfg)


def test_tta_wraps_model_and_pipeline(cfg):
    enable_tta(cfg)
    assert cfg.model.type == 'SegTTAModel'
    assert cfg.model.module.type == 'EncoderDecoder'
    assert cfg.test_dataloader.dataset.pipeline == cfg.tta_pipeline
    assert cfg.val_dataloader.dataset.pipeline != cfg.tta_pipeline


def test_tta_without_settings_is_refused_for_segmentation(cfg):
    cfg.pop('tta_model')
    with pytest.raises(ValueError, match='tta_model'):
        enable_tta(cfg)


def test_tta_of_a_detector_of_boxes_has_defaults(cfg):
    cfg.default_scope = 'mmdet'
    cfg.pop('tta_model'), cfg.pop('tta_pipeline')
    cfg.model.roi_head = dict(bbox_head=dict(type='X'), mask_head=None)
    enable_tta(cfg)
    assert cfg.model.type == 'DetTTAModel'
    assert cfg.test_dataloader.dataset.pipeline[-1].type == 'TestTimeAug'


@pytest.mark.parametrize(
    'part',
    [
        dict(roi_head=dict(mask_head=dict(type='X'))),
        dict(stages=[dict(mask_head=[dict(type='X')])]),
        dict(mask_head=dict(type='X')),
    ],
    ids=['two-stage', 'nested', 'one-stage'],
)
def test_tta_of_masks_is_refused_before_anything_is_built(cfg, part):
    cfg.default_scope = 'mmdet'
    cfg.model.update(part)
    before = cfg.pretty_text
    with pytest.raises(ValueError, match='a model that predicts masks; for boxes alone add'):
        enable_tta(cfg)
    assert cfg.pretty_text == before


@pytest.mark.parametrize(
    'changes, unused',
    [
        ({}, None),
        ({'out_indices': (0, 1, 2, 3), 'in_index': 3}, '0, 1, 2'),
        ({'out_indices': (1, 3), 'in_index': -1}, '1'),
        ({'out_indices': (1, 3), 'in_index': [0, 1]}, None),
        ({'out_indices': (2, 3), 'in_index': 0}, '3'),
    ],
    ids=['one-output', 'last', 'negative', 'all', 'first'],
)
@pytest.mark.parametrize('wrapper', [False, True])
def test_outputs_that_no_head_takes_are_allowed_for_and_said(cfg, changes, unused, wrapper):
    cfg.launcher = 'pytorch'
    if changes:
        cfg.model.backbone.out_indices = changes['out_indices']
        cfg.model.decode_head.in_index = changes['in_index']
    if wrapper:
        cfg.model_wrapper_cfg = dict(type='MMDistributedDataParallel')
    notes = launch.find_unused_parameters(cfg)
    assert len(notes) == (unused is not None)
    assert unused is None or f'No head takes output {unused} of the backbone' in notes[0]
    assert cfg.get('find_unused_parameters', False) == (unused is not None)
    if wrapper:
        assert ('find_unused_parameters' in cfg.model_wrapper_cfg) == (unused is not None)


def test_unused_outputs_do_not_matter_to_one_process_or_a_neck(cfg):
    cfg.model.backbone.out_indices = (0, 1, 2, 3)
    cfg.launcher = 'none'
    assert launch.find_unused_parameters(cfg) == []
    cfg.launcher, cfg.model.neck = 'pytorch', dict(type='FPN')
    assert launch.find_unused_parameters(cfg) == []


@pytest.mark.parametrize('seconds', [None, 60])
def test_the_time_that_processes_wait_is_stated(cfg, seconds):
    cfg.launcher = 'none'
    assert launch.limit_waiting(cfg) == []
    cfg.launcher = 'pytorch'
    if seconds:
        cfg.env_cfg.dist_cfg.timeout = seconds
    assert f'wait {seconds or 1800} s for each other' in launch.limit_waiting(cfg)[0]
    assert cfg.env_cfg.dist_cfg.timeout == (seconds or 1800)


def test_predictions_of_a_segmentor_are_a_folder(cfg):
    store_predictions(cfg, 'pictures')
    assert cfg.test_evaluator[0].output_dir == 'pictures'
    assert 'output_dir' not in cfg.val_evaluator
    with pytest.raises(ValueError, match='folder'):
        store_predictions(cfg, 'result.pkl')


def test_predictions_of_a_detector_are_a_pickle(cfg):
    cfg.default_scope = 'mmdet'
    store_predictions(cfg, 'result.pkl')
    assert cfg.test_evaluator[-1] == dict(type='DumpDetResults', out_file_path='result.pkl')
    with pytest.raises(ValueError, match='.pkl'):
        store_predictions(cfg, 'pictures')


def test_pictures_need_the_hook(cfg):
    draw_predictions(cfg, show=False, show_dir='pictures', wait_time=0)
    hook = dict(type='mmlk.PicturesHook', out_dir='pictures', show=False, wait_time=0)
    assert cfg.default_hooks.visualization == hook
    del cfg.default_hooks['visualization']
    with pytest.raises(ValueError, match='visualization'):
        draw_predictions(cfg, show=True, show_dir=None, wait_time=0)


def test_the_group_of_a_run_is_left_at_its_end(tmp_path):
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{tmp_path}/rendezvous', rank=0, world_size=1
    )
    launch.close_process_group()
    assert not torch.distributed.is_initialized()
    launch.close_process_group()  # a run of one process has none
