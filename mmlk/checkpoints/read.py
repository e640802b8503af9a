"""From a path, URL or zoo name to a flat state dict, without executing anything.

Files are read with ``weights_only=True``. What authors' and MMEngine's files hold beside tensors
(``argparse.Namespace``, numpy scalars, log buffers) is let in by name, and replaced by inert
stand-ins where importing the real class would mean more than reading. Everything else is refused.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmlk.checkpoints import zoo

CONTAINERS = ('state_dict', 'model', 'model_ema', 'state_dict_ema', 'ema_state_dict')
"""Entries that may hold the state dict, in the order in which they are taken."""

_HARMLESS = (
    'numpy.dtype',
    'numpy.ndarray',
    'numpy._core.multiarray.scalar',
    'numpy.core.multiarray.scalar',
    'numpy._core.multiarray._reconstruct',
    'numpy.core.multiarray._reconstruct',
    'mmengine.logging.history_buffer.HistoryBuffer',
    'builtins.getattr',
    '_codecs.encode',
    'pathlib.PosixPath',
    'pathlib.PurePosixPath',
    'pathlib.WindowsPath',
    'pathlib._local.PosixPath',
)
"""Globals that checkpoints mention beside tensors; read as inert stand-ins."""

_EXPORTED = ('.mlmodel', '.mlpackage', '.onnx', '.engine', '.tflite')
"""Suffixes of exported models, which hold no state dict."""

_GENERIC = ('model.safetensors', 'pytorch_model.bin', 'download', 'view', 'uc')
"""File names in URLs that say nothing about the file."""

_GLOBAL = re.compile(r'(?:GLOBAL|function|<class)\s+\'?([\w.]+)')


@dataclass
class FileInfo:
    """Where a state dict came from.

    Attributes:
        path: The file that was read.
        container: Entry that was taken, '' for a bare state dict.
        others: Further state dicts in the file; name one as ``prefer`` to take it instead.
        args: The trainer's ``argparse.Namespace``, if the file has one.
        notes: What the reader should know, one sentence each.
    """

    path: Path
    container: str = ''
    others: tuple[str, ...] = ()
    args: argparse.Namespace | None = None
    notes: list[str] = field(default_factory=list)


def read_checkpoint(
    source: str | PathLike,
    *,
    prefer: str | None = None,
    sha256: str | None = None,
    unsafe: bool = False,
    map_location: str | torch.device = 'cpu',
) -> tuple[dict[str, Tensor], FileInfo]:
    """Read the state dict of a checkpoint.

    Args:
        source: Path, URL, or ``mmlk://<name>`` of :mod:`mmlk.checkpoints.zoo`.
        prefer: Entry to take where a file holds several; by default the first of
            :data:`CONTAINERS` that is there.
        sha256: Expected checksum of the file, or its first characters.
        unsafe: Unpickle without restriction, which runs whatever code the file contains.
        map_location: Device of the tensors.

    Returns:
        Key to tensor, and where it came from.

    Raises:
        FileNotFoundError: If there is no such file.
        RuntimeError: If the file is no checkpoint, is damaged, has another checksum, or needs code
            to be run; the message names the file, the reason and the remedy.
        ValueError: If the zoo name or ``prefer`` is unknown.
    """
    path = locate(source, sha256=sha256)
    content = _read_file(path, unsafe, map_location)
    state, info = _unwrap(content, path, prefer)
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        keys = ', '.join(map(str, list(state)[:8])) or 'nothing'
        raise RuntimeError(
            f'read_checkpoint: {path} holds no tensors where a state dict was '
            f'expected (found {keys}); it is not a checkpoint of a network'
        )
    if len(tensors) < len(state):
        others = [str(key) for key in state if key not in tensors]
        info.notes.append(f'entries without a tensor ignored: {", ".join(others[:5])}')
    return tensors, info


def locate(source: str | PathLike, *, sha256: str | None = None) -> Path:
    """Local file of ``source``, downloading it into torch's hub cache if it is a URL.

    Args:
        source: Path, URL, or ``mmlk://<name>``.
        sha256: Expected checksum, or its first characters.

    Raises:
        FileNotFoundError: If a path does not exist.
        RuntimeError: If the download fails or the checksum differs.
        ValueError: If the zoo name is unknown.
    """
    text = os.fspath(source)
    if text.startswith(zoo.SCHEME):
        entry = zoo.find(text[len(zoo.SCHEME) :])
        sha256 = sha256 or entry.sha256
        path = _download(entry.url, entry)
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


def sha256_of(path: str | PathLike) -> str:
    """Checksum of a file as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


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


def _download(url: str, entry: zoo.Entry | None = None) -> Path:
    path = Path(torch.hub.get_dir()) / 'checkpoints' / _cache_name(url, entry)
    if path.is_file():
        return path
    if path.suffix in _EXPORTED or path.stem.endswith('_fused'):
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
        part = path.with_name(f'{path.name}.part')
        try:
            torch.hub.download_url_to_file(_direct(url), str(part), progress=False)
        except (OSError, ValueError) as error:
            raise RuntimeError(
                f'read_checkpoint: {url} cannot be downloaded: {error}{by_hand}'
            ) from error
        refusal = _refusal(part)
        if refusal:
            part.unlink()
            raise RuntimeError(f'read_checkpoint: what {url} delivers {refusal}{by_hand}')
        part.rename(path)
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


def _read_file(path: Path, unsafe: bool, map_location: str | torch.device) -> Any:
    """Content of a checkpoint file of any kind we read."""
    refusal = _refusal(path)
    if refusal:
        raise RuntimeError(f'read_checkpoint: {path} {refusal}')
    if _is_safetensors(path):
        return _read_safetensors(path, map_location)
    try:
        if unsafe:
            return torch.load(path, map_location=map_location, weights_only=False)
        with _harmless_globals():
            return torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # a damaged file can fail anywhere inside the reader
        named = _GLOBAL.search(str(error)) if isinstance(error, pickle.UnpicklingError) else None
        if named:
            remedy = (
                'unset TORCH_FORCE_WEIGHTS_ONLY_LOAD, which forbids it here'
                if unsafe
                else 'read it with unsafe=True, or convert it once with '
                'tools/convert_checkpoint.py --unsafe-pickle'
            )
            raise RuntimeError(
                f'read_checkpoint: {path} can only be read by running what it names ({named[1]}), '
                f'which was not done. If you trust its origin, {remedy}'
            ) from error
        detail = str(error).rpartition('WeightsUnpickler error:')[2].strip().partition('\n')[0]
        raise RuntimeError(
            f'read_checkpoint: {path} is cut short, damaged, or was not written by '
            f'torch.save ({type(error).__name__}: {detail[:100]}); download it '
            'again'
        ) from error


def _refusal(path: Path) -> str:
    """Why the file cannot be a checkpoint, judged by its first bytes; '' if it may be one."""
    if path.suffix in _EXPORTED:
        return (
            f'is an exported model ({path.suffix}), not a checkpoint; take the .pth file of '
            'the same release'
        )
    size = path.stat().st_size
    with open(path, 'rb') as file:
        head = file.read(512)
    again = 'download it again'
    text = head.lstrip().lower()
    if size == 0:
        return f'is empty; {again}'
    if _is_safetensors(path):
        return ''
    if text.startswith((b'<!doctype', b'<html', b'<?xml')):
        return 'is a web page, not a checkpoint; the link leads to a page: download the file itself'
    if text.startswith(b'version https://git-lfs'):
        return 'is a Git LFS pointer, not the file itself; fetch it with "git lfs pull"'
    if text.startswith((b'{', b'[')):
        return f'is a text file (an error message or JSON), not a checkpoint; {again}'
    if head.startswith(b'PK'):
        return _refusal_of_zip(path, again)
    if not head.startswith(b'\x80'):
        return f'is neither a torch.save nor a safetensors file, or is damaged; {again}'
    return ''


def _refusal_of_zip(path: Path, again: str) -> str:
    if not zipfile.is_zipfile(path):
        return f'is cut short: the end of the archive is missing; {again}'
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    inside = {name.split('/', 1)[-1] for name in names}
    if 'constants.pkl' in inside or any(name.startswith('code/') for name in inside):
        return (
            'is a TorchScript archive (a folded, compiled network such as *_fused.pt), which '
            'holds no loadable state dict; take the .pth file of the same release'
        )
    if 'data.pkl' not in inside:
        return 'is a zip archive but not a checkpoint; unpack it and pass the file inside'
    return ''


def _is_safetensors(path: Path) -> bool:
    """By suffix, or by content: eight bytes of header length, then a JSON header."""
    with open(path, 'rb') as file:
        head = file.read(9)
    length = int.from_bytes(head[:8], 'little')
    return path.suffix == '.safetensors' or (head[8:] == b'{' and length < path.stat().st_size)


def _read_safetensors(path: Path, map_location: str | torch.device) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise RuntimeError(
            f'read_checkpoint: {path} needs the safetensors package: pip install safetensors'
        ) from error
    try:
        return load_file(path, device=str(map_location))
    except (SafetensorError, OSError, ValueError) as error:
        raise RuntimeError(
            f'read_checkpoint: {path} is cut short or damaged ({error}); download it again'
        ) from error


class _Inert:
    """Takes any arguments and any state, and does nothing with them."""

    def __new__(cls, *args: Any, **kwargs: Any) -> _Inert:
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _stand_in(name: str) -> type:
    module, _, attribute = name.rpartition('.')
    return type(attribute, (_Inert,), {'__module__': module, '__qualname__': attribute})


_STAND_INS = [argparse.Namespace, *(_stand_in(name) for name in _HARMLESS)]


@contextlib.contextmanager
def _harmless_globals() -> Iterator[None]:
    """``torch.load`` accepts :data:`_HARMLESS` inside, ahead of what the process has allowed.

    A real class of the same name must not mix with the stand-ins, so those step aside meanwhile.
    """
    api = torch.serialization
    before = api.get_safe_globals()
    ours = {_full_name(kind) for kind in _STAND_INS}
    api.clear_safe_globals()
    api.add_safe_globals([*(kind for kind in before if _full_name(kind) not in ours), *_STAND_INS])
    try:
        yield
    finally:
        api.clear_safe_globals()
        api.add_safe_globals(before)


def _full_name(kind: Any) -> str:
    """Name under which the restricted unpickler knows an allowed global."""
    return kind[1] if isinstance(kind, tuple) else f'{kind.__module__}.{kind.__qualname__}'


def _unwrap(content: Any, path: Path, prefer: str | None) -> tuple[Mapping, FileInfo]:
    """The state dict inside ``content``, which may be a trainer's file."""
    info = FileInfo(path)
    if isinstance(content, torch.nn.Module):
        content = content.state_dict()
        info.notes.append('the file holds a whole module; its state dict was taken')
    if not isinstance(content, Mapping):
        raise RuntimeError(
            f'read_checkpoint: {path} holds a {type(content).__name__}, not a state '
            'dict; save module.state_dict()'
        )
    found = [name for name in CONTAINERS if isinstance(content.get(name), Mapping)]
    if prefer is not None and prefer not in found:
        raise ValueError(
            f'read_checkpoint: {path} has no state dict {prefer!r}; it has '
            f'{", ".join(found) or "a bare state dict only"}'
        )
    if not found:
        return content, info
    info.container = prefer or found[0]
    info.others = tuple(name for name in found if name != info.container)
    args = content.get('args')
    info.args = args if isinstance(args, argparse.Namespace) else None
    if info.others:
        info.notes.append(
            f'{info.container!r} was taken; the file also holds '
            f'{", ".join(info.others)}: prefer={info.others[0]!r} takes that'
        )
    return content[info.container], info
