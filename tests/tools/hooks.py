"""Hooks that a test config names to make a run die or hold still."""

import errno
import os
import signal
import threading
import time
from pathlib import Path

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from torch.nn.modules.batchnorm import _BatchNorm


@HOOKS.register_module()
class KillHook(Hook):
    """Sends SIGKILL to its own process after an iteration, or while its checkpoint is written."""

    priority = 'LOWEST'

    def __init__(self, after: int, while_saving: bool = False):
        self.after = after
        self.while_saving = while_saving

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == self.after and not self.while_saving:
            os.kill(os.getpid(), signal.SIGKILL)

    def before_save_checkpoint(self, runner, checkpoint):
        if runner.iter + 1 == self.after and self.while_saving:
            os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)


@HOOKS.register_module()
class LossFileHook(Hook):
    """Appends every process's loss to its own file; MMEngine logs the first process's alone."""

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        with open(Path(runner.work_dir) / f'loss_{runner.rank}.txt', 'a') as file:
            file.write(f'{outputs["loss"].item()!r}\n')


@HOOKS.register_module()
class EvalNormsHook(Hook):
    """Keeps every batch norm in eval mode, so that a sample's loss does not depend on its batch."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        for module in runner.model.modules():
            if isinstance(module, _BatchNorm):
                module.eval()


@HOOKS.register_module()
class TimedKillHook(Hook):
    """Sends SIGKILL to its own process at some moment, whatever it does then.

    Args:
        after: Iterations of this process before the clock starts, at least 3: the first are slow.
        share: Time until the kill, as a share of the last iteration's duration. A few iterations
            later it comes in any case, so that a run gets only so far.
    """

    def __init__(self, after: int, share: float):
        self.after, self.share = after, share
        self.count, self.last = 0, 0.0

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.count += 1
        now = time.monotonic()
        if self.count == self.after:
            kill = threading.Timer(
                self.share * (now - self.last), os.kill, (os.getpid(), signal.SIGKILL)
            )
            kill.daemon = True
            kill.start()
        elif self.count == self.after + 4:
            os.kill(os.getpid(), signal.SIGKILL)
        self.last = now


@HOOKS.register_module()
class FullDiskHook(Hook):
    """Lets the disk be full while the checkpoint of one iteration is written."""

    def __init__(self, at: int):
        self.at = at

    def before_save_checkpoint(self, runner, checkpoint):
        if runner.iter + 1 == self.at:
            os.fsync = self.fail

    @staticmethod
    def fail(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@HOOKS.register_module()
class HangHook(Hook):
    """Lets one process hold still before an iteration, for good."""

    def __init__(self, rank: int, at: int):
        self.rank, self.at = rank, at

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.rank == self.rank and runner.iter + 1 == self.at:
            time.sleep(3600)
