"""Checkpoints that a kill cannot spoil, and resuming from the newest one that is whole."""

import os
import pickle

import pytest
import torch
from mmengine.config import Config
from mmengine.logging import HistoryBuffer

from mmlk.cli import loading
from mmlk.cli.checkpoint import fault, locate, set_resume
from mmlk.engine import checkpoint
from mmlk.engine.checkpoint import AtomicBackend


@pytest.fixture
def cfg(config, tmp_path):
    loaded = Config.fromfile(str(config))
    loaded.work_dir = str(tmp_path / 'run')
    (tmp_path / 'run').mkdir()
    return loaded


def save(cfg, name, age=0):
    """A small whole checkpoint of the given name, written ``age`` seconds ago."""
    path = os.path.join(cfg.work_dir, name)
    torch.save(dict(state_dict=dict(weight=torch.arange(1000.0))), path)
    os.utime(path, (1e9 - age, 1e9 - age))
    return path


def point_at(cfg, path):
    with open(os.path.join(cfg.work_dir, 'last_checkpoint'), 'w') as file:
        file.write(path)


def truncate(path, share=0.6):
    os.truncate(path, int(os.path.getsize(path) * share))


def flip_a_byte(path):
    with open(path, 'r+b') as file:
        file.seek(os.path.getsize(path) // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 0xFF]))


@pytest.mark.parametrize(
    'spoil, hint',
    [
        (truncate, 'is cut short'),
        (flip_a_byte, 'is damaged: the checksum of its record .*data/0 differs'),
        (os.remove, 'does not exist'),
        (lambda path: os.truncate(path, 0), 'is empty'),
    ],
)
def test_spoilt_file_is_recognised(cfg, spoil, hint):
    path = save(cfg, 'iter_2.pth')
    assert fault(path) == ''
    spoil(path)
    with pytest.raises(ValueError, match=hint):
        locate(path)


def test_interrupted_write_leaves_the_old_file(tmp_path, monkeypatch):
    target = tmp_path / 'iter_2.pth'
    AtomicBackend().put(b'old', target)
    monkeypatch.setattr(checkpoint.os, 'fsync', lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        AtomicBackend().put(b'new', target)
    assert target.read_bytes() == b'old'


def test_resume_takes_what_the_run_recorded(cfg):
    save(cfg, 'iter_200.pth')
    point_at(cfg, save(cfg, 'iter_20.pth', age=50))
    set_resume(cfg, 'auto')
    assert cfg.resume
    assert cfg.load_from.endswith('iter_20.pth')


@pytest.mark.parametrize('spoil', [truncate, flip_a_byte, os.remove])
def test_resume_steps_back_to_the_newest_whole_file(cfg, spoil):
    save(cfg, 'iter_2.pth', age=30)
    save(cfg, 'iter_4.pth', age=20)
    save(cfg, 'best_mIoU_iter_4.pth')
    point_at(cfg, save(cfg, 'iter_6.pth', age=10))
    spoil(os.path.join(cfg.work_dir, 'iter_6.pth'))
    notes = set_resume(cfg, 'auto')
    assert cfg.load_from.endswith('/iter_4.pth')
    assert 'Not resuming from' in notes[0]
    assert 'iter_6.pth' in notes[0]


@pytest.mark.parametrize(
    'leave_record',
    [
        lambda cfg: None,
        lambda cfg: point_at(cfg, ''),
        lambda cfg: point_at(cfg, '/gone/iter_9.pth'),
    ],
    ids=['absent', 'empty', 'stale'],
)
def test_resume_without_a_usable_record_takes_the_newest_file(cfg, leave_record):
    save(cfg, 'iter_2.pth', age=9)
    save(cfg, 'iter_4.pth')
    leave_record(cfg)
    set_resume(cfg, 'auto')
    assert cfg.load_from.endswith('iter_4.pth')


def test_resume_follows_a_moved_folder(cfg):
    save(cfg, 'iter_2.pth')
    point_at(cfg, '/gone/run/iter_2.pth')
    set_resume(cfg, 'auto')
    assert cfg.load_from == os.path.join(cfg.work_dir, 'iter_2.pth')


def test_resume_looks_where_the_hook_writes(cfg, tmp_path):
    cfg.default_hooks.checkpoint.out_dir = str(tmp_path / 'store')
    (tmp_path / 'store' / 'run').mkdir(parents=True)
    os.rename(save(cfg, 'iter_2.pth'), tmp_path / 'store' / 'run' / 'iter_2.pth')
    set_resume(cfg, 'auto')
    assert cfg.load_from == str(tmp_path / 'store' / 'run' / 'iter_2.pth')


def test_nothing_to_resume_keeps_the_pretrained_start(cfg):
    cfg.load_from = 'pretrained.pth'
    assert 'starts anew' in set_resume(cfg, 'auto')[0]
    assert not cfg.resume
    assert cfg.load_from == 'pretrained.pth'


def test_resume_from_a_given_file_is_checked(cfg):
    path = save(cfg, 'iter_2.pth')
    set_resume(cfg, path)
    assert (cfg.resume, cfg.load_from) == (True, path)
    truncate(path)
    with pytest.raises(ValueError, match='is cut short'):
        set_resume(cfg, path)


def test_no_resume_leaves_the_config_alone(cfg):
    assert set_resume(cfg, None) == []
    assert not cfg.resume


def test_missing_checkpoint_names_its_neighbours(cfg):
    save(cfg, 'iter_2.pth')
    with pytest.raises(ValueError, match='does not exist; beside it: iter_2.pth'):
        locate(os.path.join(cfg.work_dir, 'iter_3.pth'))


def test_pointer_file_stands_for_its_checkpoint(cfg):
    path = save(cfg, 'iter_2.pth')
    point_at(cfg, path)
    assert locate(os.path.join(cfg.work_dir, 'last_checkpoint')) == path


def test_url_and_bare_pickle_are_left_to_the_loader(tmp_path):
    legacy = tmp_path / 'old.pth'
    legacy.write_bytes(pickle.dumps({}))
    assert locate(str(legacy)) == str(legacy)
    assert locate('https://example.org/w.pth') == 'https://example.org/w.pth'


def test_a_published_file_is_found_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, '_hub_dir', str(tmp_path))
    cached = tmp_path / 'checkpoints' / 'recnext_m3_ade20k.pth'
    cached.parent.mkdir()
    torch.save({'state_dict': {}}, cached)
    assert locate('mmlk://recnext_m3_ade20k') == str(cached)


class _Payload:
    """A pickle that writes a file when it is executed."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, 'w')


def test_pickle_is_not_executed(tmp_path, monkeypatch):
    from mmengine.runner.checkpoint import load_checkpoint

    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '0')
    loading.read_only_tensors()
    torch.save(dict(state_dict={}, extra=_Payload(str(tmp_path / 'executed'))), tmp_path / 'x.pth')
    with pytest.raises(RuntimeError, match='can only be read by running'):
        load_checkpoint(torch.nn.Linear(1, 1), str(tmp_path / 'x.pth'))
    assert not (tmp_path / 'executed').exists()


class _Lookup:
    """Asks for an attribute of another object when it is unpickled."""

    def __init__(self, owner, name):
        self.owner, self.name = owner, name

    def __reduce__(self):
        return getattr, (self.owner, self.name)


def test_own_logs_load_and_no_other_lookup_does(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '0')
    loading.read_only_tensors()
    torch.save(dict(log=HistoryBuffer([1.0, 3.0], [1, 1])), tmp_path / 'x.pth')
    assert torch.load(tmp_path / 'x.pth')['log'].mean() == 2.0
    for owner, name in ((HistoryBuffer, '__init__'), (torch.Size, 'count')):
        torch.save(_Lookup(owner, name), tmp_path / 'x.pth')
        with pytest.raises((ValueError, pickle.UnpicklingError)):
            torch.load(tmp_path / 'x.pth')


def test_pickle_is_executed_where_the_user_asks(tmp_path, monkeypatch):
    from mmengine.runner.checkpoint import load_checkpoint

    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '0')
    loading.read_only_tensors(trust=True)
    torch.save(dict(state_dict={}, extra=_Payload(str(tmp_path / 'executed'))), tmp_path / 'x.pth')
    load_checkpoint(torch.nn.Linear(1, 1), str(tmp_path / 'x.pth'))
    assert (tmp_path / 'executed').exists()


def test_foreign_checkpoint_is_refused_in_a_test():
    from mmengine.runner.checkpoint import _load_checkpoint_to_model

    model = torch.nn.ModuleDict(
        dict(
            head=torch.nn.Linear(2, 2),
            auxiliary_head=torch.nn.Linear(2, 2),
            norm=torch.nn.BatchNorm1d(2),
        )
    )
    loading.require_coverage(model)
    own = {key: value for key, value in model.state_dict().items() if key.startswith('head')}
    norm = {
        key: value
        for key, value in model.state_dict().items()
        if key in ('norm.weight', 'norm.bias', 'norm.running_mean', 'norm.running_var')
    }
    _load_checkpoint_to_model(model, dict(state_dict={**own, **norm}))
    with pytest.raises(RuntimeError, match="lacks 2 of the model's tensors.*head.weight"):
        _load_checkpoint_to_model(model, dict(state_dict=norm))
    wide = {'head.weight': torch.ones(3, 2), 'head.bias': torch.ones(3)}
    with pytest.raises(
        RuntimeError, match=r'2 tensors have other shapes, first head.weight: \(3, 2\) in the check'
    ):
        _load_checkpoint_to_model(model, dict(state_dict={**wide, **norm}))
    auxiliary = {'auxiliary_head.weight': torch.ones(3, 2)}
    _load_checkpoint_to_model(model, dict(state_dict={**own, **norm, **auxiliary}))
