"""Machine code on disk: a second process finds what the first has compiled.

A file is named after a digest of everything that its content follows from, and begins with a digest of
the content, so that a damaged file counts as missing. Files may be deleted at any time. The folder is
``MMLK_JIT_CACHE`` (empty: none), by default ``mmlk/jit`` in the user's cache folder.

Whoever can write there decides what this process runs. A folder or a file that belongs to somebody else,
or that others may write to, is not used.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
import time
from pathlib import Path

from mmlk.ops import owned

ENVIRONMENT = 'MMLK_JIT_CACHE'
_TEMPORARY = 'unfinished-'
_LEFT_OVER = 3600
"""Seconds after which the unfinished file of another process counts as left behind."""


def folder() -> Path | None:
    """Where files are kept; None where they are not."""
    chosen = os.environ.get(ENVIRONMENT)
    if chosen is not None:
        return Path(chosen) if chosen else None
    try:
        home = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
    except RuntimeError:  # this user has no home folder
        return None
    return Path(home) / 'mmlk' / 'jit'


def load(name: str) -> bytes | None:
    """Content of file ``name``, if it is there, whole, and written by this user."""
    place = folder()
    if place is None or not owned.can_trust(place):
        return None
    try:
        with open(place / name, 'rb') as file:
            if not owned.can_trust(place / name, file.fileno()):
                return None
            data = file.read()
    except OSError:
        return None
    digest, content = data[:32], data[32:]
    return content if content and hashlib.sha256(content).digest() == digest else None


def store(name: str, content: bytes) -> None:
    """Write a file; without a writable folder of its own the next process compiles again."""
    place = folder()
    if place is None:
        return
    with contextlib.suppress(OSError):
        if not place.exists():
            place.parent.mkdir(parents=True, exist_ok=True)
            place.mkdir(mode=0o700, exist_ok=True)
        if not owned.can_trust(place):
            return
        _remove_left_over(place)
        handle, temporary = tempfile.mkstemp(prefix=_TEMPORARY, dir=place)
        try:
            with os.fdopen(handle, 'wb') as file:
                file.write(hashlib.sha256(content).digest() + content)
            os.replace(temporary, place / name)  # a reader sees all of it or nothing
        except OSError:
            os.unlink(temporary)
            raise


def _remove_left_over(place: Path) -> None:
    """Delete what killed processes did not finish."""
    for each in place.glob(f'{_TEMPORARY}*'):
        with contextlib.suppress(OSError):  # another process was faster
            if time.time() - each.stat().st_mtime > _LEFT_OVER:
                each.unlink()
