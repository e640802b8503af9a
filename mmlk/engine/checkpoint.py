"""Checkpoints that a kill cannot spoil.

MMEngine writes a checkpoint in place and deletes the outdated one first, so a run killed while it
saves leaves a truncated file, or nothing. Here a checkpoint is written beside its place and renamed
into it, and deletions wait until that has happened.
"""

from __future__ import annotations

import os
from pathlib import Path

from mmengine.dist import master_only
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook

from mmlk.registry import HOOKS

_BACKEND = 'mmlk_atomic'


class AtomicBackend(LocalBackend):
    """Local files that appear complete or not at all."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write beside ``filepath``, flush to disk, rename."""
        target = Path(filepath)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f'{target.name}.partial')
        with open(partial, 'wb') as file:
            file.write(obj)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)


register_backend(_BACKEND, AtomicBackend, force=True)


class _PatientBackend(AtomicBackend):
    """Collects deletions instead of performing them."""

    def __init__(self):
        self.outdated: list[str] = []

    def remove(self, filepath: str | Path) -> None:
        self.outdated.append(str(filepath))


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """MMEngine's ``CheckpointHook``, with the same arguments, safe against a kill at any moment.

    Writes are atomic, and an outdated checkpoint is deleted only after its successor is complete:
    ``max_keep_ckpts`` is exceeded by one file while a checkpoint is written. Folders on remote
    storage, and runs that set ``backend_args``, are left to their own file backend.
    """

    def before_train(self, runner) -> None:
        super().before_train(runner)
        if (
            self.backend_args is None
            and self.file_client_args is None
            and isinstance(self.file_backend, LocalBackend)
        ):
            self.backend_args = dict(backend=_BACKEND)
            self.file_backend = _PatientBackend()

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
        """Delete what the last save made superfluous, unless it wrote the same name again."""
        if not isinstance(self.file_backend, _PatientBackend):
            return
        best = (getattr(self, 'best_ckpt_path_dict', None) or {}).values()
        kept = {self.last_ckpt, getattr(self, 'best_ckpt_path', None), *best}
        for path in self.file_backend.outdated:
            if path not in kept:
                Path(path).unlink(missing_ok=True)
        self.file_backend.outdated.clear()
