"""From a path, URL or zoo name to a flat state dict, without executing anything.

Files are read with ``weights_only=True``. What authors' and MMEngine's files hold beside tensors
(``argparse.Namespace``, numpy scalars, log buffers) is let in by name, and replaced by inert
stand-ins where importing the real class would mean more than reading. Everything else is refused.
"""

from __future__ import annotations

import argparse
import contextlib
import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmlk.checkpoints.fetch import locate
from mmlk.checkpoints.files import REMEDY, is_safetensors, problem

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
    content = load_file(path, unsafe=unsafe, map_location=map_location)
    state, info = unwrap(content, path, prefer)
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


def load_file(
    path: Path,
    *,
    unsafe: bool = False,
    map_location: str | torch.device | None = 'cpu',
    allowed: Sequence | None = None,
) -> Any:
    """Content of a checkpoint file of any kind we read, after a check of the whole file.

    Args:
        path: Existing file.
        unsafe: Unpickle without restriction.
        map_location: Device of the tensors.
        allowed: Classes and functions that may be read beside tensors; by default those that
            trainers' files mention, as inert stand-ins.

    Raises:
        RuntimeError: If the file is no checkpoint, is damaged, or needs code to be run.
    """
    wrong = problem(path)
    if wrong:
        raise RuntimeError(f'read_checkpoint: {path} {wrong}')
    if is_safetensors(path):
        return _read_safetensors(path, map_location or 'cpu')
    try:
        if unsafe:
            return torch.load(path, map_location=map_location, weights_only=False)
        with _allowed_globals(_STAND_INS if allowed is None else allowed):
            return torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # a damaged file can fail anywhere inside the reader
        message = _explain(path, error, unsafe)
    # outside the handler: torch's own message, which advises to run the file, is not chained
    raise RuntimeError(f'read_checkpoint: {path} {message}')


def _explain(path: Path, error: Exception, unsafe: bool) -> str:
    """Why a file whose structure is whole could not be read, and the remedy."""
    named = _GLOBAL.search(str(error)) if isinstance(error, pickle.UnpicklingError) else None
    if named:
        remedy = (
            'unset TORCH_FORCE_WEIGHTS_ONLY_LOAD, which forbids it here'
            if unsafe
            else 'read it with unsafe=True (--unsafe-pickle of "mmlk train" and "mmlk test"), '
            'or convert it once with "mmlk convert --unsafe-pickle"'
        )
        return (
            f'can only be read by running what it names ({named[1]}), '
            f'which was not done. If you trust its origin, {remedy}'
        )
    detail = str(error).rpartition('WeightsUnpickler error:')[2].strip().partition('\n')[0]
    return (
        f'is cut short, damaged, or was not written by torch.save '
        f'({type(error).__name__}: {detail[:100]}); {REMEDY}'
    )


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
            f'read_checkpoint: {path} is cut short or damaged ({error}); {REMEDY}'
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
def _allowed_globals(allowed: Sequence) -> Iterator[None]:
    """``torch.load`` accepts ``allowed`` inside, ahead of what the process has allowed.

    A real class of the same name must not mix with a replacement, so it is set apart meanwhile.
    """
    api = torch.serialization
    before = api.get_safe_globals()
    ours = {_full_name(kind) for kind in allowed}
    api.clear_safe_globals()
    api.add_safe_globals([*(kind for kind in before if _full_name(kind) not in ours), *allowed])
    try:
        yield
    finally:
        api.clear_safe_globals()
        api.add_safe_globals(before)


def _full_name(kind: Any) -> str:
    """Name under which the restricted unpickler knows an allowed global."""
    return kind[1] if isinstance(kind, tuple) else f'{kind.__module__}.{kind.__qualname__}'


def unwrap(content: Any, path: Path, prefer: str | None = None) -> tuple[Mapping, FileInfo]:
    """The state dict inside ``content``, which may be a trainer's file.

    Raises:
        RuntimeError: If ``content`` is neither a mapping nor a module.
        ValueError: If there is no entry called ``prefer``.
    """
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
        exchanged = 'message_hub' in content and 'ema_state_dict' in info.others
        what = " (MMEngine's files have the average in state_dict)" if exchanged else ''
        info.notes.append(
            f'{info.container!r} was taken; the file also holds '
            f'{", ".join(info.others)}{what}: prefer={info.others[0]!r} takes that'
        )
    return content[info.container], info
