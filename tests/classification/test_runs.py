"""Classifiers through the tools: train, test, resume, sparse training, averages, dense transfer."""

import json
import pickle

import cv2
import numpy as np
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from mmlk.data.pictures import CLASSES
from tests.classification.models import published
from tests.classification.runs import PICTURES, SMALL, SPARSE, write_config, write_pictures
from tests.tools import workbench

pytest.importorskip('mmpretrain')


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    return write_pictures(tmp_path_factory.mktemp('pictures') / 'data')


def write(folder, pictures, text=SMALL, more=''):
    return [write_config(folder, text, more), '--cfg-options', f'data_root={pictures}']


def accuracy_of_test(work_dir):
    """What the test tool left behind."""
    return json.loads(next(work_dir.glob('*/*.json')).read_text())['accuracy/top1']


def state(path, key='state_dict'):
    return torch.load(path, weights_only=False)[key]


@pytest.mark.slow
def test_train_then_test_then_resume_gives_the_uninterrupted_run(tmp_path, pictures, monkeypatch):
    call = dict(monkeypatch=monkeypatch, cwd=tmp_path)
    config = write(tmp_path, pictures)
    workbench.call_tool('train.py', *config, '--work-dir', 'whole', **call)
    losses = workbench.scalars(tmp_path / 'whole', 'loss')
    assert len(losses) == 8 and losses[0] == pytest.approx(2.08, abs=0.3), 'log 8 at the start'
    arguments = [config[0], 'whole/epoch_2.pth', *config[1:], '--work-dir', 'tested']
    workbench.call_tool('test.py', *arguments, **call)
    assert (
        accuracy_of_test(tmp_path / 'tested')
        == workbench.scalars(tmp_path / 'whole', 'accuracy/top1')[-1]
    )

    stop = "\ncustom_hooks = [dict(type='mmlk.SingleImageNormHook'), dict(type='StopAfterOne')]\n"

    class StopAfterOne(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            if runner.epoch == 1 and batch_idx == 2:
                raise KeyboardInterrupt

    HOOKS.register_module(module=StopAfterOne)
    try:
        stopping = write(tmp_path, pictures, more=stop)
        with pytest.raises(KeyboardInterrupt):
            workbench.call_tool('train.py', *stopping, '--work-dir', 'parts', **call)
    finally:
        HOOKS._module_dict.pop('StopAfterOne')
    config = write(tmp_path, pictures)
    workbench.call_tool('train.py', *config, '--work-dir', 'parts', '--resume', **call)
    whole, parts = (state(tmp_path / name / 'epoch_2.pth') for name in ('whole', 'parts'))
    for key, value in whole.items():
        assert torch.equal(value, parts[key]), key


@pytest.mark.slow
def test_sparse_training_from_scratch_with_an_average(tmp_path, pictures, monkeypatch):
    config = write(tmp_path, pictures, more=SPARSE)
    workbench.call_tool(
        'train.py', *config, '--work-dir', 'run', monkeypatch=monkeypatch, cwd=tmp_path
    )
    checkpoint = torch.load(tmp_path / 'run/epoch_2.pth', weights_only=False)
    masks = checkpoint['sparse_masks']
    assert masks['step'] == 8 and any(name.startswith('head.') for name in masks['shapes'])
    kept = sum(masks['targets'].values()) + sum(masks['dense'].values())
    sizes = [torch.Size(shape).numel() for shape in masks['shapes'].values()]
    assert kept / (sum(sizes) + sum(masks['dense'].values())) == pytest.approx(0.6, abs=0.03)
    # With an average the checkpoint holds it as the weights, and the trained ones beside it.
    for name, wanted in masks['targets'].items():
        average = checkpoint['state_dict'][name]
        trained = checkpoint['ema_state_dict'][f'module.{name}']
        assert int((trained != 0).sum()) <= wanted and int((average != 0).sum()) <= wanted
        assert not average[trained == 0].any(), name


@pytest.mark.slow
def test_two_processes_train_alike(tmp_path, pictures):
    config = write(tmp_path, pictures, more=SPARSE)
    run = workbench.start_two(*config, '--work-dir', 'run', cwd=tmp_path)
    assert run.returncode == 0, run.stdout[-4000:]
    assert 'communicate through gloo' in run.stdout
    assert state(tmp_path / 'run/epoch_2.pth', 'sparse_masks')['step'] == 4


@pytest.mark.slow
def test_classifier_starts_a_segmentor(tmp_path, pictures, monkeypatch):
    call = dict(monkeypatch=monkeypatch, cwd=tmp_path)
    config = write(tmp_path, pictures)
    workbench.call_tool('train.py', *config, '--work-dir', 'classifier', **call)
    data = workbench.write_dataset(tmp_path / 'ade')
    dense = workbench.write_config(
        tmp_path,
        data,
        optim_wrapper="dict(type='OptimWrapper', optimizer=dict(type='SGD', lr=0.0))",
    )
    start = "dict(type='Pretrained', checkpoint='classifier/epoch_2.pth', prefix='backbone.')"
    dense.write_text(f"{dense.read_text()}model['backbone']['init_cfg'] = {start}\n")
    workbench.call_tool('train.py', dense, '--work-dir', 'dense', **call)
    refused = [dense, '--cfg-options', 'load_from=classifier/epoch_2.pth', '--work-dir', 'refused']
    why = "classifier/epoch_2.pth: .*holds a classifier, the model is .*prefix='backbone.'"
    with pytest.raises(SystemExit, match=why):
        workbench.call_tool('train.py', *refused, **call)
    with pytest.raises(SystemExit, match='epoch_2.pth: .*lacks 11 of .*belongs to another config'):
        workbench.call_tool('test.py', dense, 'classifier/epoch_2.pth', **call)
    source = state(tmp_path / 'classifier/epoch_2.pth')
    found = state(tmp_path / 'dense/iter_4.pth')
    compared = [
        key
        for key, value in source.items()
        if key.startswith('backbone.') and value.ndim and 'running' not in key
    ]
    assert len(compared) > 50
    for key in compared:
        assert torch.equal(found[key], source[key]), key


@pytest.mark.slow
def test_published_file_is_tested_by_its_config_and_a_wrong_one_refused(
    tmp_path, pictures, monkeypatch
):
    """The authors' file through tools/test.py: it covers the model, whatever it scores here."""
    call = dict(monkeypatch=monkeypatch, cwd=tmp_path)
    eight = published('inceptionnext/atto')
    for key in ('head.fc2.weight', 'head.fc2.bias'):
        eight[key] = eight[key][: len(CLASSES)]
    torch.save(eight, tmp_path / 'author.pth')
    original = SMALL.replace('arch=dict(depths=(1, 1, 1, 1), dims=(8, 16, 16, 16))', "arch='atto'")
    config = write(tmp_path, pictures, original.replace('in_channels=16', 'in_channels=320'))
    keep = ['--work-dir', 'a', '--out', 'a.pkl', '--show-dir', str(tmp_path / 'pictures')]
    workbench.call_tool('test.py', config[0], 'author.pth', *config[1:], *keep, **call)
    assert 0 <= accuracy_of_test(tmp_path / 'a') <= 100
    kept = pickle.loads((tmp_path / 'a.pkl').read_bytes())
    assert [len(sample['pred_score']) for sample in kept] == [len(CLASSES)] * PICTURES.val
    drawn = {
        file.relative_to(tmp_path / 'pictures').as_posix().removesuffix('.png'): file
        for file in (tmp_path / 'pictures').rglob('*.png')
    }
    assert len(drawn) == PICTURES.val, 'equal names in several folders are several files'
    for name, file in drawn.items():
        below = slice(-12, None)  # of the words
        shown, original = (
            cv2.imread(str(each))[below].mean((0, 1)) for each in (file, pictures / 'val' / name)
        )
        assert np.abs(shown - original).max() < 6, 'red is red'
    with pytest.raises(SystemExit, match='classification writes one file'):
        workbench.call_tool(
            'test.py', config[0], 'author.pth', *config[1:], '--out', 'folder', **call
        )
    renamed = dict(state_dict=eight, meta=dict(dataset_meta=dict(classes=['x', *CLASSES[1:]])))
    torch.save(renamed, tmp_path / 'renamed.pth')
    workbench.call_tool('test.py', config[0], 'renamed.pth', *config[1:], '--work-dir', 'c', **call)
    (log,) = (tmp_path / 'c').glob('*/*.log')
    assert (
        f"class 0 is 'x' in the checkpoint and {CLASSES[0]!r} in the test data" in log.read_text()
    )
    torch.save(published('inceptionnext/atto'), tmp_path / 'thousand.pth')
    why = (
        'error: thousand.pth: .*2 tensors have other shapes, first head.fc2.weight: .1000, 960. in'
    )
    with pytest.raises(SystemExit, match=why):
        workbench.call_tool(
            'test.py', config[0], 'thousand.pth', *config[1:], '--work-dir', 'b', **call
        )
