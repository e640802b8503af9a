"""One file from the network, whole or not at all: resumed where the connection broke, then checked.

What has arrived stays beside the target as ``<name>.part`` with ``<name>.part.json``, which says what
the server called the file (its ETag or date). The next call goes on from there if the server still has
that file, and starts anew otherwise. Only the standard library is needed.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import logging
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

_BLOCK = 1 << 20
_TIMEOUT = 60.0  # seconds without a byte
_WAITS = (0.5, 2.0, 8.0, 30.0)  # seconds before each further attempt
_PASSING = (408, 429, 500, 502, 503, 504)  # statuses that may be gone the next time

_log = logging.getLogger('mmlk')


def download(
    url: str,
    path: Path,
    *,
    size: int | None = None,
    sha256: str | None = None,
    sha1: str | None = None,
    check: Callable[[Path], str] = lambda path: '',
) -> Path:
    """Bring ``url`` to ``path``, unless a file is there already.

    Args:
        url: ``http``, ``https`` or ``file``.
        path: File to write; its folder is made.
        size: Bytes that the file must have, if known. What the server announces is checked anyway.
        sha256: Expected checksum or its first characters, if known.
        sha1: The same for publishers that state this one.
        check: Says what is wrong with the file that arrived, '' if nothing is.

    Returns:
        ``path``.

    Raises:
        RuntimeError: If the file cannot be had (a part stays for the next call), does not fit on the
            disk, or is not the expected one (nothing stays).
    """
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part, note = _part(path)
    for wait in (*_WAITS, None):
        try:
            _receive(url, part, note)
            break
        except urllib.error.HTTPError as error:
            if error.code not in _PASSING or wait is None:
                raise RuntimeError(f'download: {url}: {error}') from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            passing = url.startswith('http') and not isinstance(error, (ValueError, _DiskFull))
            if not passing or wait is None:
                raise RuntimeError(f'download: {url}: {error}') from error
        arrived = part.stat().st_size if part.is_file() else 0
        _log.warning('download: %s broke off after %d bytes; trying again', url, arrived)
        time.sleep(wait)
    wrong = _wrong(part, size, dict(sha256=sha256, sha1=sha1)) or check(part)
    note.unlink(missing_ok=True)
    if wrong:
        part.unlink()
        raise RuntimeError(f'download: what {url} delivers {wrong}')
    part.replace(path)
    return path


def checksum(path: str | os.PathLike, kind: str = 'sha256') -> str:
    """Checksum of a file in hexadecimal digits."""
    digest = hashlib.new(kind)
    with open(path, 'rb') as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


class _DiskFull(OSError):
    """The rest of the file does not fit."""


def _part(path: Path) -> tuple[Path, Path]:
    return path.with_name(f'{path.name}.part'), path.with_name(f'{path.name}.part.json')


def _receive(url: str, part: Path, note: Path) -> None:
    """One attempt: the bytes that are not there yet."""
    known = _noted(note) if part.is_file() else {}
    begin = part.stat().st_size if known.get('url') == url and known.get('version') else 0
    if begin and begin == known.get('total'):
        return
    request = urllib.request.Request(url, headers={'Accept-Encoding': 'identity'})
    if begin:
        request.add_header('Range', f'bytes={begin}-')
        request.add_header('If-Range', known['version'])
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as response:
        resumed = response.status == 206
        if resumed and not response.headers.get('Content-Range', '').startswith(f'bytes {begin}-'):
            note.unlink()  # the next attempt asks for the whole
            raise OSError(
                f'the server sent {response.headers.get("Content-Range")} of bytes {begin}-'
            )
        begin = begin if resumed else 0
        length = response.headers.get('Content-Length')
        total = begin + int(length) if length else None
        headers = response.headers
        version = headers.get('ETag') or headers.get('Last-Modified') or ''
        if version.startswith('W/'):  # a weak tag promises no equal bytes
            version = ''
        free = shutil.disk_usage(part.parent).free
        if total and total - begin > free:
            raise _DiskFull(f'{total - begin} bytes are to come and {part.parent} has {free} left')
        note.write_text(json.dumps(dict(url=url, version=version, total=total)))
        if resumed:
            _log.info('download: %s goes on from byte %d of %s', url, begin, total)
        with open(part, 'ab' if resumed else 'wb') as file:
            shutil.copyfileobj(response, file, _BLOCK)
    if total is not None and part.stat().st_size != total:
        raise OSError(f'{part.stat().st_size} of {total} bytes arrived')


def _noted(note: Path) -> dict:
    """What was known of a part when it was begun; a note that was cut short says nothing."""
    try:
        return json.loads(note.read_text())
    except (FileNotFoundError, ValueError):
        return {}


def _wrong(part: Path, size: int | None, sums: dict[str, str | None]) -> str:
    found = part.stat().st_size
    if size is not None and found != size:
        return f'has {found} bytes, not {size}'
    for kind, expected in sums.items():
        if expected and not (got := checksum(part, kind)).startswith(expected.lower()):
            return f'has {kind} {got}, not {expected}'
    return ''
