"""Full disks, what killed runs leave, and losses that are no numbers, inside a run.

Scenarios: a full disk (stand-in and real), kills at two moments of a save, losses x intervals, mixed
precision.
"""

from __future__ import annotations

import builtins
import errno
import os
import subprocess

import pytest
import torch
from mmengine.hooks import Hook

from mmlk.engine import FiniteLossHook, SafeCheckpointHook, SparseMaskHook
from mmlk.engine.checkpoint import AtomicBackend
from tests.engine.sparse_models import Classifier, sparse_runner


def run(folder, *, hooks=(), keep=2, model=None, **options):
    """A runner of 8 iterations that saves every second one through the safe hook."""
    runner, _ = sparse_runner(
        folder,
        hook=SparseMaskHook(init='uniform', update_interval=0),
        hooks=hooks,
        model=model,
        **options,
    )
    saver = SafeCheckpointHook(by_epoch=False, interval=2, max_keep_ckpts=keep)
    runner._hooks = [
        saver if type(hook).__name__ == 'CheckpointHook' else hook for hook in runner._hooks
    ]
    return runner


def names(folder):
    return sorted(path.name for path in folder.glob('*.pth*'))


class FullDisk:
    """Files on a disk with ``space`` bytes: writing beyond raises as the system does."""

    def __init__(self, monkeypatch, space):
        self.space, self.open = space, builtins.open
        monkeypatch.setattr('builtins.open', self)

    def __call__(self, path, mode='r', *args, **kwargs):
        file = self.open(path, mode, *args, **kwargs)
        if 'b' not in mode or 'w' not in mode or not str(path).endswith('.partial'):
            return file
        write = file.write

        class Limited:
            def __enter__(inner):
                return inner

            def __exit__(inner, *error):
                file.close()

            def write(inner, content):
                write(content[: self.space])
                if len(content) > self.space:
                    raise OSError(errno.ENOSPC, 'No space left on device')

            flush, fileno = file.flush, file.fileno

        return Limited()


def test_full_disk_is_named_with_need_and_free_space(tmp_path, monkeypatch):
    runner = run(tmp_path, max_iters=2)
    runner.train()
    before = (tmp_path / 'iter_2.pth').read_bytes()
    FullDisk(monkeypatch, 1000)
    again = run(tmp_path, max_iters=4, resume=True)
    with pytest.raises(RuntimeError, match=r'iter_4.pth cannot be saved: No space left') as caught:
        again.train()
    assert 'MB are free' in str(caught.value) and 'it needs 0.' in str(caught.value)
    assert names(tmp_path) == ['iter_2.pth']
    assert (tmp_path / 'iter_2.pth').read_bytes() == before
    assert (tmp_path / 'last_checkpoint').read_text().endswith('iter_2.pth')


@pytest.mark.slow
def test_a_disk_that_is_really_full(tmp_path):
    mounted = subprocess.run(
        ['mount', '-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', str(tmp_path)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip('mounting a small file system needs privileges that this process lacks')
    try:
        AtomicBackend().put(b'old', tmp_path / 'a.pth')
        with pytest.raises(RuntimeError, match=r'needs 1.0 MB and 0.\d MB are free'):
            AtomicBackend().put(bytes(1_000_000), tmp_path / 'a.pth')
        assert (tmp_path / 'a.pth').read_bytes() == b'old' and names(tmp_path) == ['a.pth']
    finally:
        subprocess.run(['umount', str(tmp_path)], check=True)


def test_other_failures_leave_no_part_either(tmp_path, monkeypatch):
    monkeypatch.setattr(os, 'fsync', lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        AtomicBackend().put(b'new', tmp_path / 'a.pth')
    assert names(tmp_path) == []


class Killed(BaseException):
    """Stands for the end of a process."""


@pytest.mark.parametrize('moment', ['before-rename', 'before-deletion'])
def test_what_a_killed_save_leaves_is_swept_by_the_next_run(tmp_path, monkeypatch, moment):
    def die(*_):
        raise Killed

    killed = run(tmp_path, max_iters=8)
    with monkeypatch.context() as patch:
        if moment == 'before-rename':

            def cut(self, obj, filepath):
                if str(filepath).endswith('iter_6.pth'):
                    (tmp_path / 'iter_6.pth.partial').write_bytes(obj[:100])
                    die()
                put(self, obj, filepath)

            put = AtomicBackend.put
            patch.setattr(AtomicBackend, 'put', cut)
        else:
            delete = SafeCheckpointHook._delete_outdated
            patch.setattr(
                SafeCheckpointHook,
                '_delete_outdated',
                lambda self: die() if str(self.last_ckpt).endswith('iter_6.pth') else delete(self),
            )
        with pytest.raises(Killed):
            killed.train()
    left = {
        'before-rename': ['iter_2.pth', 'iter_4.pth', 'iter_6.pth.partial'],
        'before-deletion': ['iter_2.pth', 'iter_4.pth', 'iter_6.pth'],
    }
    assert names(tmp_path) == left[moment]
    again = run(tmp_path, max_iters=8, resume=True)
    again.train()
    assert names(tmp_path) == ['iter_6.pth', 'iter_8.pth']


def test_files_of_others_are_not_swept(tmp_path):
    for name in ('notes.partial', 'iter_1.pth', 'best_mIoU_iter_2.pth'):
        (tmp_path / name).write_text('mine')
    run(tmp_path, max_iters=2).train()
    assert {'notes.partial', 'iter_1.pth', 'best_mIoU_iter_2.pth'} < {
        path.name for path in tmp_path.iterdir()
    }


class Diverging(Classifier):
    """A classifier whose loss is no number from one forward pass on."""

    def __init__(self, at, value):
        super().__init__(layer_scale_init=1.0)
        self.at, self.value, self.seen = at, value, 0

    def forward(self, inputs, labels, mode='loss'):
        losses = super().forward(inputs, labels, mode)
        self.seen += 1
        return {k: v * self.value if self.seen >= self.at else v for k, v in losses.items()}


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
@pytest.mark.parametrize(
    'at, interval, noticed', [(1, 3, 2), (2, 3, 2), (3, 5, 4), (3, 1, 3)], ids=str
)
def test_a_loss_that_is_no_number_ends_the_run_before_it_is_saved(
    tmp_path, value, at, interval, noticed
):
    """Saves come every second iteration, so the look is at the interval or at the next save."""
    runner = run(
        tmp_path, max_iters=8, hooks=[FiniteLossHook(interval)], model=Diverging(at, value)
    )
    with pytest.raises(RuntimeError, match=f'no number at iteration {noticed} .*lr.*clip_grad'):
        runner.train()
    assert all(
        tensor.isfinite().all()
        for path in tmp_path.glob('*.pth')
        for tensor in torch.load(path, weights_only=False)['state_dict'].values()
        if tensor.is_floating_point()
    )


def test_the_interval_is_that_of_the_log(tmp_path):
    hook = FiniteLossHook()
    run(tmp_path, max_iters=1, hooks=[hook]).train()
    assert hook.interval == 10
    with pytest.raises(ValueError, match='interval 0 must be at least 1'):
        FiniteLossHook(0)


def test_a_skipped_step_of_mixed_precision_is_a_warning(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(
        'mmengine.optim.optimizer.amp_optimizer_wrapper.is_cuda_available', lambda: True
    )
    amp = dict(type='AmpOptimWrapper', dtype='bfloat16')

    class Skips(Hook):
        """Stands for the scaler: takes the gradient of an overflow away before the step."""

        priority = 'HIGH'

        def before_train(self, runner):
            update = runner.optim_wrapper.update_params
            runner.optim_wrapper.update_params = lambda loss: loss.isfinite() and update(loss)

    runner = run(
        tmp_path,
        max_iters=2,
        hooks=[FiniteLossHook(1), Skips()],
        model=Diverging(2, float('nan')),
        optim_wrapper=amp,
    )
    warned = []
    monkeypatch.setattr(runner.logger, 'warning', lambda text, *_: warned.append(text))
    runner.train()
    assert any('the scaler skips such steps' in text for text in warned)
