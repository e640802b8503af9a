"""The recipe for generated scenes, shortened: positions move, repel and stay in the window."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

from mmlk.data.folder import write_folder
from mmlk.data.scene import VERSION
from mmlk.data.writers import Parameters, dataset_files
from tests.engine.dcls_models import positions

CONFIG = Path(__file__).parents[2] / 'configs/upernet_dcls_convnext_n_ade20k_mini.py'
SCENES = Parameters(('ade20k',), train=4, val=1, height=96, width=128, seed=0)
ARCH = dict(depths=(2, 1, 1, 1), dims=(8, 12, 16, 20), kernel_count=6, kernel_size=17)
LIMIT = 8


def short_run(data_root, work_dir, hooks):
    """Six iterations of the recipe on small crops; positions start near the border."""
    cfg = Config.fromfile(CONFIG)
    cfg.merge_from_dict(
        {
            'work_dir': str(work_dir),
            'randomness.seed': 0,
            'log_level': 'ERROR',
            'experiment_name': str(work_dir),
            'model.backbone.arch': ARCH,
            'model.data_preprocessor.size': (64, 64),
            'model.decode_head.in_channels': ARCH['dims'],
            'model.decode_head.channels': 8,
            'model.decode_head.norm_cfg.type': 'BN',
            'train_cfg': dict(type='IterBasedTrainLoop', max_iters=6),
            'param_scheduler': [],
            'default_hooks.checkpoint': dict(type='CheckpointHook', by_epoch=False, interval=6),
        }
    )
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    cfg.test_dataloader = cfg.test_cfg = cfg.test_evaluator = None
    cfg.train_dataloader.update(batch_size=2, num_workers=0, persistent_workers=False)
    dataset = cfg.train_dataloader.dataset
    dataset.data_root = str(data_root)
    for step in dataset.pipeline:
        step.update(dict(crop_size=(64, 64)) if step['type'] == 'RandomCrop' else {})
    cfg.custom_hooks += hooks
    runner = Runner.from_cfg(cfg)
    with torch.no_grad():
        for value in positions(runner.model).values():
            value.add_(LIMIT - 1.5)
    return runner


@pytest.mark.parametrize('average', [False, True], ids=['plain', 'ema'])
def test_positions_move_and_stay_in_the_window_on_scenes(tmp_path, average):
    write_folder(tmp_path / 'data', dataset_files(SCENES), VERSION, SCENES.as_dict())
    runner = short_run(
        tmp_path / 'data', tmp_path / 'run', [dict(type='EMAHook')] if average else []
    )
    before = {name: value.detach().clone() for name, value in positions(runner.model).items()}
    runner.train()
    after = positions(runner.model)
    assert len(after) == len(before) == 4
    for name, value in after.items():
        moved = (value - before[name].clamp(-LIMIT, LIMIT)).abs()
        assert moved.mean() > 1e-2, name
        assert value.abs().max() <= LIMIT, name
    assert max(value.max() for value in after.values()) == LIMIT, 'nothing met the border'
    losses = runner.message_hub.log_scalars['train/loss'].data[0]
    assert len(losses) == 6 and all(0 < loss < 10 for loss in losses)
    saved = torch.load(tmp_path / 'run/iter_6.pth', weights_only=False)
    # With an average, the checkpoint holds it as the weights and the trained ones beside it.
    for name, value in after.items():
        assert torch.equal(
            saved['ema_state_dict' if average else 'state_dict'][
                ('module.' if average else '') + name
            ],
            value,
        )
