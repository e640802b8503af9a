"""Where a checkpoint is asked for by path, URL or zoo name: the file on this machine."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from os import PathLike
from pathlib import Path

import torch

from mmlk.checkpoints import zoo
from mmlk.checkpoints.download import checksum, download
from mmlk.checkpoints.files import EXPORTED, problem

_GENERIC = ('model.safetensors', 'pytorch_model.bin', 'download', 'view', 'uc')
"""File names in URLs that say nothing about the file."""


def locate(source: str | PathLike, *, sha256: str | None = None) -> Path:
    """Local file of ``source``, downloading it into torch's hub cache if it is a URL.

    A download that broke off goes on where it stopped (:mod:`mmlk.checkpoints.download`).

    Args:
        source: Path, URL, ``mmlk://<name>``, or ``hf-hub:<owner>/<name>``.
        sha256: Expected checksum, or its first characters.

    Raises:
        FileNotFoundError: If a path does not exist.
        RuntimeError: If the download fails or the checksum differs.
        ValueError: If the zoo name is unknown, or that of the hub has another form.
    """
    text = os.fspath(source)
    if text.startswith(zoo.SCHEME):
        entry = zoo.find(text[len(zoo.SCHEME) :])
        sha256 = sha256 or entry.sha256
        path = _download(entry.url, entry)
    elif text.startswith(zoo.HUB_SCHEME):
        url = zoo.hub_url(text)
        path = _download(url, next((e for e in zoo.ENTRIES.values() if e.url == url), None))
    elif re.match(r'\w+://', text):
        path = _download(text)
    else:
        path = Path(text).expanduser()
    if not path.is_file():
        hint = f'; did you mean {zoo.SCHEME}{text}?' if text in zoo.ENTRIES else ''
        raise FileNotFoundError(f'read_checkpoint: there is no file {text!r}{hint}')
    if sha256:
        _check_sum(path, sha256)
    return path


def cached(source: str) -> bool:
    """Whether the file of a URL or zoo name lies in the cache already."""
    name = source.removeprefix(zoo.SCHEME)
    entry = zoo.find(name) if name != source else None
    return _cache_path(entry.url if entry else source, entry).is_file()


def sha256_of(path: str | PathLike) -> str:
    """Checksum of a file as 64 hexadecimal digits."""
    return checksum(path)


def _check_sum(path: Path, expected: str) -> None:
    found = sha256_of(path)
    if not found.startswith(expected.lower()):
        raise RuntimeError(
            f'read_checkpoint: {path} has sha256 {found}, not {expected}; it is '
            'damaged or another file: delete it and download it again'
        )


def _cache_name(url: str, entry: zoo.Entry | None = None) -> str:
    """File name in the cache: the URL's own, unless that is generic and would collide."""
    parts = [part for part in re.split(r'[/?#]', url.split('://', 1)[1]) if part]
    if parts[-1] not in _GENERIC and '.' in parts[-1]:
        return parts[-1]
    suffix = '.safetensors' if url.endswith('.safetensors') else '.pth'
    if entry:
        return entry.name.replace('/', '--') + suffix
    return '--'.join(parts[1:]).removesuffix(suffix) + suffix


def _cache_path(url: str, entry: zoo.Entry | None = None) -> Path:
    return Path(torch.hub.get_dir()) / 'checkpoints' / _cache_name(url, entry)


def _download(url: str, entry: zoo.Entry | None = None) -> Path:
    path = _cache_path(url, entry)
    if path.is_file():
        return path
    if path.suffix in EXPORTED or path.stem.endswith('_fused'):
        raise RuntimeError(
            f'read_checkpoint: {url} is an exported model (folded or compiled), not '
            'a checkpoint; take the .pth file of the same release'
        )
    note = f' ({entry.note})' if entry and entry.note else ''
    by_hand = f'{note}; download it by hand and pass its path, or save it as {path}'
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path):
        if path.is_file():
            return path
        try:
            download(_direct(url), path, check=problem)
        except RuntimeError as error:
            raise RuntimeError(
                f'read_checkpoint: {url} cannot be downloaded: {error}{by_hand}'
            ) from error
    return path


def _direct(url: str) -> str:
    """Address of the file itself, where a link leads to a page about it."""
    drive = re.match(r'https://drive\.google\.com/file/d/([\w-]+)', url)
    if drive:
        return (
            f'https://drive.usercontent.google.com/download?id={drive[1]}&export=download&confirm=t'
        )
    return url


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process of this machine at a time, so that the ranks of a run download once."""
    try:
        import fcntl
    except ImportError:  # no such lock on this system: downloads move into place atomically anyway
        yield
        return
    with open(path.with_name(f'{path.name}.lock'), 'w') as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
