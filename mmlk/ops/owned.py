"""Which files and folders only this user can have written."""

from __future__ import annotations

import functools
import logging
import os
import stat
from pathlib import Path


def can_trust(path: Path, handle: int | None = None) -> bool:
    """Whether ``path`` belongs to this user and no other may write to it; said once if not.

    Args:
        path: File or folder.
        handle: Descriptor of the file if it is open: what is read is then what was looked at.

    Returns:
        False, too, where there is no such file.
    """
    if not hasattr(os, 'getuid'):  # Windows: the user's folders have access lists of their own
        return True
    try:
        state = os.stat(path if handle is None else handle)
    except OSError:
        return False
    if state.st_uid != os.getuid():
        _say(path, f'belongs to user {state.st_uid}, not to {os.getuid()}')
        return False
    if state.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        _say(path, f'can be written by others (mode {stat.S_IMODE(state.st_mode):o})')
        return False
    return True


@functools.cache
def _say(path: Path, reason: str) -> None:
    logging.getLogger('mmlk').warning(
        '%s is not used: it %s. Remove it, or make it yours alone (chmod go-w).', path, reason
    )
