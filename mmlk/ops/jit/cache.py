"""Machine code on disk: a second process finds what the first has compiled.

A file is named after a digest of everything that its content follows from, and begins with a digest of
the content, so that a damaged file counts as missing. Files may be deleted at any time. The folder is
``MMLK_JIT_CACHE`` (empty: none), by default ``mmlk/jit`` in the user's cache folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path

ENVIRONMENT = 'MMLK_JIT_CACHE'


def folder() -> Path | None:
    """Where files are kept; None where they are not."""
    chosen = os.environ.get(ENVIRONMENT)
    if chosen is not None:
        return Path(chosen) if chosen else None
    try:
        home = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
    except RuntimeError:  # nobody's home
        return None
    return Path(home) / 'mmlk' / 'jit'


def load(name: str) -> bytes | None:
    """Content of file ``name``, if it is there and whole."""
    place = folder()
    try:
        data = (place / name).read_bytes() if place else b''
    except OSError:
        return None
    digest, content = data[:32], data[32:]
    return content if content and hashlib.sha256(content).digest() == digest else None


def store(name: str, content: bytes) -> None:
    """Write a file; without a writable folder the next process compiles again."""
    place = folder()
    if place is None:
        return
    with contextlib.suppress(OSError):
        place.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=place)
        try:
            with os.fdopen(handle, 'wb') as file:
                file.write(hashlib.sha256(content).digest() + content)
            os.replace(temporary, place / name)  # a reader sees all of it or nothing
        except OSError:
            os.unlink(temporary)
            raise
