"""Checkpoints that neither a kill nor a full disk can spoil.

MMEngine writes a checkpoint in place and deletes the outdated one first, so a run killed while it
saves leaves a truncated file, or nothing. Here a checkpoint is written beside its place and renamed
into it, and deletions wait until that has happened. What a killed run had no time to delete, the run
that resumes it deletes.
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from mmengine.dist import master_only
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook

from mmlk.compat import resumes
from mmlk.registry import HOOKS

_BACKEND = 'mmlk_atomic'
_PARTIAL = '.partial'
_OUTDATED = 'outdated_checkpoints'


class AtomicBackend(LocalBackend):
    """Local files that appear complete or not at all."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write beside ``filepath``, flush to disk, rename; a failure leaves no part behind.

        Raises:
            RuntimeError: If the disk is full, or a quota is used up: with path, need and free space.
        """
        target = Path(filepath)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f'{target.name}{_PARTIAL}')
        try:
            with open(partial, 'wb') as file:
                file.write(obj)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, target)
        except BaseException as error:
            partial.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise RuntimeError(_no_space(target, len(obj), error)) from error
            raise


def _no_space(target: Path, need: int, error: OSError) -> str:
    free = shutil.disk_usage(target.parent).free
    return (
        f'SafeCheckpointHook: {target} cannot be saved: {error.strerror}; it needs '
        f'{need / 1e6:,.1f} MB and {free / 1e6:,.1f} MB are free. The checkpoints before it are '
        'whole: make room, or set default_hooks.checkpoint.out_dir to another disk, and continue '
        'with --resume. A smaller max_keep_ckpts needs less'
    )


register_backend(_BACKEND, AtomicBackend, force=True)


class _DeferringBackend(AtomicBackend):
    """Collects deletions instead of performing them."""

    def __init__(self):
        self.outdated: list[str] = []

    def remove(self, filepath: str | Path) -> None:
        self.outdated.append(str(filepath))


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """MMEngine's ``CheckpointHook``, with the same arguments, safe against a kill at any moment.

    Writes are atomic, and an outdated checkpoint is deleted only after its successor is complete:
    ``max_keep_ckpts`` is exceeded by one file while a checkpoint is written. Before training, parts
    of checkpoints (``*.pth.partial``) that killed runs left in the folder are deleted, and so is what
    the checkpoint that training resumes from names as outdated. Folders on remote storage, and runs
    that set ``backend_args``, are left to their own file backend.
    """

    _outdated: tuple[str, ...] = ()
    """Names of files that the run which is resumed was about to delete."""

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Remember what was outdated when the checkpoint that training resumes from was saved."""
        if resumes(runner):
            self._outdated = tuple(checkpoint.get(_OUTDATED, ()))

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        """Name, inside the new checkpoint, the files that it makes superfluous."""
        if isinstance(getattr(self, 'file_backend', None), _DeferringBackend):
            checkpoint[_OUTDATED] = [Path(path).name for path in self._superfluous()]

    def before_train(self, runner) -> None:
        super().before_train(runner)
        if (
            self.backend_args is None
            and self.file_client_args is None
            and isinstance(self.file_backend, LocalBackend)
        ):
            self.backend_args = dict(backend=_BACKEND)
            self.file_backend = _DeferringBackend()
            self._sweep(runner)

    @master_only
    def _sweep(self, runner) -> None:
        """Delete what a killed run left in the folder."""
        folder = Path(self.out_dir)
        left = [*folder.glob(f'*.pth{_PARTIAL}'), *(folder / name for name in self._outdated)]
        for path in left:
            if path.is_file():
                path.unlink()
                runner.logger.info(f'{path} deleted: a killed run left it.')

    def after_train_iter(self, runner, *args, **kwargs) -> None:
        super().after_train_iter(runner, *args, **kwargs)
        self._delete_outdated()

    def after_train_epoch(self, runner) -> None:
        super().after_train_epoch(runner)
        self._delete_outdated()

    def after_val_epoch(self, runner, metrics) -> None:
        super().after_val_epoch(runner, metrics)
        self._delete_outdated()

    @master_only
    def _delete_outdated(self) -> None:
        """Delete what the last save made superfluous."""
        if isinstance(getattr(self, 'file_backend', None), _DeferringBackend):
            for path in self._superfluous():
                Path(path).unlink(missing_ok=True)
            self.file_backend.outdated.clear()

    def _superfluous(self) -> list[str]:
        """Outdated files, without those that were written again under the same name."""
        best = (getattr(self, 'best_ckpt_path_dict', None) or {}).values()
        kept = {self.last_ckpt, getattr(self, 'best_ckpt_path', None), *best}
        return [path for path in self.file_backend.outdated if path not in kept]
