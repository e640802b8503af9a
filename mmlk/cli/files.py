"""Files that appear complete or not at all."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def complete(target: Path) -> Iterator[Path]:
    """A path beside ``target`` to write to; it takes its place at the end, unless an error comes.

    Args:
        target: File to make or to replace; missing folders are made.
    """
    with partial_file(target) as partial:
        yield partial
        os.replace(partial, target)


@contextmanager
def partial_file(target: Path) -> Iterator[Path]:
    """A path beside ``target`` to write to; what is still there at the end is deleted."""
    target.parent.mkdir(parents=True, exist_ok=True)
    # the suffix stays, because writers choose the format by it; a long name leaves no room for more
    partial = target.with_name(f'.{target.stem[:40]}.{os.getpid()}.partial{target.suffix}')
    try:
        yield partial
    finally:
        partial.unlink(missing_ok=True)


def check_writable(folder: Path) -> None:
    """Raise if nothing can be written to ``folder``, which need not exist yet; nothing is made.

    Raises:
        ValueError: Naming the place that stands in the way.
    """
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        what = 'is no folder' if not place.is_dir() else 'is not writable'
        raise ValueError(f'{folder} cannot be written to: {place} {what}; name another folder')


def write_by(save: Callable[[BinaryIO], object], path: Path) -> None:
    """Write what ``save`` writes to a file object, by way of memory.

    The writers of torch end the whole process where the disk is full, or speak of positions, and make a
    path part of what they write.

    Args:
        save: Writes to the object that it is given.
        path: File to make.

    Raises:
        OSError: If it cannot be written.
    """
    buffer = io.BytesIO()
    save(buffer)
    path.write_bytes(buffer.getbuffer())
