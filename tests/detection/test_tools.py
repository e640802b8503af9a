"""Detectors through the tools: what is wrong with the data is said at once, runs are resumed."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from mmengine.config import Config

import mmlk
from mmlk.cli import checks
from mmlk.cli.evaluation import draw_predictions
from mmlk.data.layout import DataError, check_datasets
from tests.detection.detectors import on_scenes, small_config
from tests.tools.workbench import ROOT, call_tool, environment, run_tool

ANNOTATIONS = 'annotations/instances_train2017.json'


def edited(change):
    """Spoils the training file by a function of its content."""

    def spoil(root):
        content = json.loads((root / ANNOTATIONS).read_text())
        change(content)
        (root / ANNOTATIONS).write_text(json.dumps(content))

    return spoil


def truncate(root):
    content = (root / ANNOTATIONS).read_bytes()
    (root / ANNOTATIONS).write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize(
    ('spoil', 'message'),
    [
        (truncate, 'probably truncated.*MMLK_COCO_ROOT'),
        (edited(lambda content: content.update(annotations=[])), 'no annotation'),
        (
            edited(lambda content: content['annotations'][0].update(category_id=12)),
            'category id 12',
        ),
        (
            edited(
                lambda content: content['annotations'][0].update(
                    segmentation=[[900, 10, 920, 10, 920, 30]]
                )
            ),
            'lies outside its image',
        ),
    ],
    ids=['truncated', 'empty', 'category', 'mask'],
)
def test_broken_annotations_stop_a_recipe_before_it_starts(spoil, message, spoilt, monkeypatch):
    monkeypatch.setenv('MMLK_COCO_ROOT', str(spoilt))
    config = Config.fromfile(mmlk.config_path('mask_rcnn_recnext_m3_coco.py'))
    assert check_datasets(config)[0].startswith('train_dataloader: 8 images')
    spoil(spoilt)
    with pytest.raises(DataError, match=f'(?s)train_dataloader: .*{message}'):
        check_datasets(config)


def test_missing_data_is_answered_with_source_and_remedy(monkeypatch, tmp_path):
    with pytest.raises(SystemExit) as stop:
        call_tool(
            'train.py',
            'mmlk::mask_rcnn_recnext_m3_coco.py',
            '--cfg-options',
            f'data_root={tmp_path}/absent',
            monkeypatch=monkeypatch,
            cwd=tmp_path,
        )
    message = str(stop.value)
    assert message.startswith('train.py: error: train_dataloader: no folder')
    assert all(word in message for word in ('train2017', 'cocodataset.org', 'MMLK_COCO_ROOT'))
    assert list(tmp_path.iterdir()) == []


def test_missing_operators_are_answered_with_the_remedy(generated, monkeypatch, tmp_path):
    monkeypatch.setattr(checks.mmcv_ops, 'source', lambda: None)
    with pytest.raises(SystemExit, match=r'mmcv\._ext is missing\).*install the torchvision'):
        call_tool(
            'train.py',
            'mmlk::mask_rcnn_recnext_m3_coco.py',
            '--cfg-options',
            f'data_root={generated}',
            monkeypatch=monkeypatch,
            cwd=tmp_path,
        )
    assert list(tmp_path.iterdir()) == []


def test_pictures_go_to_the_folder_that_is_named(tmp_path):
    config = Config.fromfile(mmlk.config_path('mask_rcnn_recnext_m0_coco_mini.py'))
    config.default_hooks.visualization.score_thr = 0.6
    draw_predictions(config, show=False, show_dir=str(tmp_path), wait_time=0)
    hook = config.default_hooks.visualization
    assert (hook.type, hook.out_dir, hook.score_thr) == ('mmlk.PicturesHook', str(tmp_path), 0.6)


@pytest.fixture
def write_run(generated, tmp_path):
    """Writes a config of two epochs of four iterations in which nothing is drawn at random."""

    def write(hook: dict, work_dir: str, batch_size: int = 2):
        config = on_scenes(small_config('mask_rcnn_slak_t_coco.py'), generated, tmp_path / work_dir)
        config.model.backbone.drop_path_rate = 0.0
        for part in (config.model.train_cfg.rpn, config.model.train_cfg.rcnn):
            part.sampler.num = 100_000  # more than there are: every region is taken
        config.train_dataloader.dataset.pipeline[-2].prob = 0.0  # the flip
        config.train_dataloader.batch_size = batch_size
        config.train_cfg.update(max_epochs=2, val_interval=2)
        config.default_hooks.logger.interval = 1
        config.custom_imports = dict(imports=['tests.tools.hooks'])
        config.custom_hooks = [hook]
        config.dump(tmp_path / f'{work_dir}.py')
        return tmp_path / f'{work_dir}.py'

    return write


@pytest.mark.slow
def test_a_killed_run_resumes_to_equal_weights(write_run, monkeypatch, tmp_path, one_thread):
    config = write_run(dict(type='KillHook', after=6), 'killed')
    done = run_tool('train.py', config, cwd=tmp_path)
    assert done.returncode == -signal.SIGKILL, done.stdout
    assert (tmp_path / 'killed/last_checkpoint').read_text().endswith('epoch_1.pth')

    for name, flags in (('killed', ['--resume']), ('whole', [])):
        config = write_run(dict(type='LossFileHook'), name)
        call_tool('train.py', config, *flags, monkeypatch=monkeypatch, cwd=tmp_path)
    resumed, whole = (
        torch.load(tmp_path / name / 'epoch_2.pth', weights_only=False)['state_dict']
        for name in ('killed', 'whole')
    )
    assert resumed.keys() == whole.keys()
    for key, value in whole.items():
        torch.testing.assert_close(resumed[key], value, rtol=0, atol=1e-6, msg=key)
    assert len((tmp_path / 'killed/loss_0.txt').read_text().split()) == 4, 'the second epoch alone'
    # The best epoch and the last ones are kept side by side.
    best = next((tmp_path / 'whole').glob('best_coco_bbox_mAP_epoch_*.pth'))
    assert best.is_file() and (tmp_path / 'whole/epoch_1.pth').is_file()


@pytest.mark.slow
def test_two_processes_train_a_detector(write_run, tmp_path):
    config = write_run(dict(type='LossFileHook'), 'two', batch_size=1)
    done = subprocess.run(
        ['sh', str(ROOT / 'tools/dist_train.sh'), str(config), '2'],
        cwd=tmp_path,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=300,
        env=environment(PYTHON=sys.executable, PORT=str(20000 + os.getpid() % 20000)),
    )
    assert done.returncode == 0, done.stdout
    assert 'coco/segm_mAP_50: ' in done.stdout
    losses = [(tmp_path / 'two' / f'loss_{rank}.txt').read_text().split() for rank in (0, 1)]
    assert [len(each) for each in losses] == [8, 8]
    assert losses[0] != losses[1], 'each process has images of its own'
    assert (tmp_path / 'two/epoch_2.pth').is_file()
