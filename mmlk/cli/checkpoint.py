"""Which checkpoint a run starts from, and whether that file is whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmlk.checkpoints import files, zoo


def fault(path: str | Path) -> str:
    """Why a checkpoint file cannot be used, '' if it is whole."""
    if Path(path).is_dir():
        return 'is a folder; name a file in it, such as last_checkpoint'
    return files.problem(path) if Path(path).is_file() else 'does not exist'


def locate(checkpoint: str) -> str:
    """The file behind a checkpoint argument, whole; URLs are left to the download.

    Args:
        checkpoint: File, URL, ``mmlk://<name>`` of a published file, ``hf-hub:<owner>/<name>``, or
            the ``last_checkpoint`` pointer which a run leaves in its folder.

    Raises:
        ValueError: If the file is missing or damaged, with the checkpoints that lie beside it.
    """
    path = Path(checkpoint)
    if checkpoint.startswith((zoo.SCHEME, zoo.HUB_SCHEME)):
        from mmlk.checkpoints import fetch  # needs torch, which this module does without

        path = fetch.locate(checkpoint)
    elif '://' in checkpoint:
        return checkpoint
    if path.name == 'last_checkpoint' and path.is_file():
        path = _pointed_at(path, path.parent)
    why = fault(path)
    if why:
        beside = sorted(found.name for found in path.parent.glob('*.pth'))
        raise ValueError(
            f'checkpoint {path} {why}' + (f'; beside it: {", ".join(beside[:8])}' if beside else '')
        )
    return str(path)


def set_resume(cfg: Config, choice: str | None) -> list[str]:
    """Settle what ``--resume`` asks for, in place.

    Args:
        cfg: ``resume`` and ``load_from`` are set.
        choice: ``'auto'`` for the newest whole checkpoint of the work folder, a path, or None to do
            what the config says.

    Returns:
        Sentences for the log.

    Raises:
        ValueError: If a given checkpoint is missing or damaged.
    """
    if choice is None and cfg.get('resume'):
        choice = cfg.get('load_from') or 'auto'
    if choice is None:
        return []
    if choice != 'auto':
        cfg.resume, cfg.load_from = True, locate(choice)
        return [f'Resuming from {cfg.load_from}.']
    notes = []
    for candidate in _candidates(Path(cfg.work_dir), _checkpoint_folder(cfg)):
        why = fault(candidate)
        if not why:
            cfg.resume, cfg.load_from = True, str(candidate)
            return [*notes, f'Resuming from {candidate}.']
        notes.append(f'Not resuming from {candidate}: it {why}.')
    cfg.resume = False
    return [*notes, f'Nothing to resume from in {cfg.work_dir}: training starts anew.']


def check_weights(cfg: Config) -> None:
    """Check the local files that a config starts from, before anything is built.

    Args:
        cfg: ``load_from``, a teacher and every ``init_cfg`` of type ``Pretrained`` are looked at;
            URLs are left to the download, which checks what it delivers. A pointer in ``load_from``
            is followed.

    Raises:
        ValueError: Naming the key, the file and what is wrong with it.
    """
    sources = dict(_pretrained(cfg.get('model'), 'model'))
    if cfg.get('load_from') and not cfg.get('resume'):
        cfg.load_from = sources['load_from'] = locate(cfg.load_from)
    model = cfg.get('model') or {}
    if str(model.get('type')).rpartition('.')[2] == 'DistilledClassifier':
        sources['model.teacher_checkpoint'] = model.get('teacher_checkpoint')
        if not model.get('teacher_checkpoint'):
            raise ValueError(
                'model.teacher_checkpoint is missing; a teacher with random weights teaches nothing. '
                'Name its file, or train without a teacher (*_without_distill_in1k.py)'
            )
    for key, source in sources.items():
        if isinstance(source, str) and not zoo.is_remote(source):
            why = fault(Path(source).expanduser())
            known = f'; did you mean {zoo.SCHEME}{source}?' if source in zoo.ENTRIES else ''
            if why:
                raise ValueError(f'{key}: checkpoint {source} {why}{known}')


def _pretrained(node: Any, path: str) -> Iterator[tuple[str, str]]:
    """(place, file) of every ``Pretrained`` initialisation under ``node``."""
    if isinstance(node, dict):
        if node.get('type') == 'Pretrained' and node.get('checkpoint'):
            yield f'{path}.checkpoint', node['checkpoint']
        items = node.items()
    else:
        items = enumerate(node) if isinstance(node, (list, tuple)) else ()
    for name, child in items:
        yield from _pretrained(child, f'{path}.{name}')


def _checkpoint_folder(cfg: Config) -> Path:
    """Where the checkpoint hook of this config writes."""
    work_dir = Path(cfg.work_dir)
    out_dir = ((cfg.get('default_hooks') or {}).get('checkpoint') or {}).get('out_dir')
    return Path(out_dir) / work_dir.name if out_dir else work_dir


def _candidates(work_dir: Path, folder: Path) -> list[Path]:
    """Checkpoints to resume from, best first: the recorded one, then numbered ones by age."""
    numbered = sorted(
        (
            path
            for path in folder.glob('*_*.pth')
            if path.stem.split('_')[-1].isdigit() and not path.name.startswith('best_')
        ),
        key=lambda path: path.stat().st_mtime,
        reverse=True,
    )
    pointer = work_dir / 'last_checkpoint'
    if not pointer.is_file() or not pointer.read_text().strip():
        return numbered
    first = _pointed_at(pointer, folder)
    return [first, *(path for path in numbered if path.name != first.name)]


def _pointed_at(pointer: Path, folder: Path) -> Path:
    """The file that a run recorded as its last, also after its folder has been moved."""
    recorded = Path(pointer.read_text().strip())
    return recorded if recorded.is_file() else folder / recorded.name
