"""A generated folder: written whole or not at all, recognised later, never put over others' files.

The marker file inside says which generator wrote the folder, with which parameters, and lists every
file with its size and SHA-256.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

MARKER = '.mmlk_generated.json'
GENERATOR = 'mmlk.data'


def read_marker(folder: Path) -> dict | None:
    """The marker of a folder, or None where the folder was not written by this generator."""
    try:
        marker = json.loads((folder / MARKER).read_text())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError, UnicodeDecodeError):
        return None
    genuine = isinstance(marker, dict) and marker.get('generator') == GENERATOR
    return marker if genuine and isinstance(marker.get('files'), dict) else None


def is_up_to_date(folder: Path, version: int, parameters: dict) -> bool:
    """Whether the folder was written with these parameters and still has every file in its size."""
    marker = read_marker(folder)
    if marker is None or (marker.get('version'), marker.get('parameters')) != (version, parameters):
        return False
    present = dict(_files(folder))
    return all(present.get(path) == entry['size'] for path, entry in marker['files'].items())


def foreign_file(folder: Path) -> str | None:
    """A file of a folder that its marker does not list, if there is one; any without a marker."""
    marker = read_marker(folder)
    listed = {MARKER, *marker['files']} if marker else set()
    return next((path for path, _ in _files(folder) if path not in listed), None)


def changed_files(folder: Path) -> list[str]:
    """Files of a generated folder whose content is no longer what was written, or that are gone."""
    marker = read_marker(folder)
    if marker is None:
        raise ValueError(f'changed_files: {folder} has no {MARKER}, so it was not generated')
    return [
        path
        for path, entry in marker['files'].items()
        if not (folder / path).is_file()
        or hashlib.sha256((folder / path).read_bytes()).hexdigest() != entry['sha256']
    ]


def check_replaceable(folder: Path, overwrite: bool) -> None:
    """Refuse to write where something stands that would be lost.

    Raises:
        ValueError: If the path is a file; if the folder holds a file that the generator did not
            write; if it holds another generated set and ``overwrite`` is off.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ValueError(f'generate_data: {folder} is a file; name a folder that does not exist')
    foreign = foreign_file(folder)
    if foreign:
        raise ValueError(
            f'generate_data: {folder} holds files that this generator did not write, {foreign!r} '
            'for one; nothing was changed. Name another folder'
        )
    marker = read_marker(folder)
    if marker and not overwrite:
        raise ValueError(
            f'generate_data: {folder} holds a generated set of other parameters '
            f'({marker["parameters"]}, version {marker["version"]}) or an incomplete one; '
            'nothing was changed. Pass --overwrite to replace it, or name another folder'
        )


def write_folder(
    folder: Path, files: Iterable[tuple[str, bytes]], version: int, parameters: dict
) -> int:
    """Write all files to a sibling folder, then put it in place with one rename.

    Returns:
        Number of files written, without the marker.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(folder)
    partial = folder.with_name(f'.{folder.name}.partial-{os.getpid()}')
    partial.mkdir()
    try:
        entries = {}
        for path, content in files:
            target = partial / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
            entries[path] = dict(size=len(content), sha256=hashlib.sha256(content).hexdigest())
        marker = dict(generator=GENERATOR, version=version, parameters=parameters, files=entries)
        (partial / MARKER).write_text(json.dumps(marker, indent=1))
        _swap(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return len(entries)


def _swap(new: Path, folder: Path) -> None:
    """Put ``new`` in the place of ``folder``; the old one is deleted only after that."""
    if not folder.exists():
        new.rename(folder)
        return
    old = new.with_name(new.name + '-old')
    folder.rename(old)
    try:
        new.rename(folder)
    except OSError:
        old.rename(folder)
        raise
    shutil.rmtree(old)


def _remove_leftovers(folder: Path) -> None:
    """Delete what runs that were killed left beside the folder."""
    for leftover in folder.parent.glob(f'.{folder.name}.partial-*'):
        process = leftover.name.rsplit('partial-', 1)[1]
        if process.isdigit() and not Path('/proc', process).exists():
            shutil.rmtree(leftover, ignore_errors=True)


def _files(folder: Path) -> Iterator[tuple[str, int]]:
    """Relative path, with forward slashes, and size of every file below a folder."""
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            yield path.relative_to(folder).as_posix(), path.lstat().st_size
