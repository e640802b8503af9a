"""Files that appear complete or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def complete(target: Path) -> Iterator[Path]:
    """A path beside ``target`` to write to; it takes its place at the end, unless an error comes.

    Args:
        target: File to make or to replace; missing folders are made.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    # the suffix stays, because writers choose the format by it
    partial = target.with_name(f'.{target.stem}.{os.getpid()}.partial{target.suffix}')
    try:
        yield partial
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def writable_folder(path: Path) -> Path:
    """``path``, made if it is missing.

    Raises:
        ValueError: If no file can be written there.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f'.{os.getpid()}.probe'
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f'{path} cannot be written to ({error.strerror}); name another') from error
    return path
