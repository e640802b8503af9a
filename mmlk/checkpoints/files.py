"""Whether a file can be a checkpoint and is whole, judged without loading it.

torch's files are zip archives whose directory is written last and whose records carry checksums, so a
truncated file and a single flipped bit both show. torch itself does not compare the checksums. Files
without any (safetensors, torch before 1.6, torch told to write none) are judged by their structure;
only a ``sha256`` finds a flipped bit in those.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

EXPORTED = ('.mlmodel', '.mlpackage', '.onnx', '.engine', '.tflite')
"""Suffixes of exported models, which hold no state dict."""

REMEDY = 'download it again, or take another checkpoint of the run'


def problem(path: str | Path) -> str:
    """What is wrong with a checkpoint file, with the remedy; '' if nothing is.

    The text continues a sentence that begins with the file's name. The whole file is read where it
    carries checksums.

    Args:
        path: A file that exists.
    """
    path = Path(path)
    if path.suffix in EXPORTED:
        return (
            f'is an exported model ({path.suffix}), not a checkpoint; take the .pth file of '
            'the same release'
        )
    with open(path, 'rb') as file:
        head = file.read(512)
    text = head.lstrip().lower()
    if not head:
        return f'is empty; {REMEDY}'
    if is_safetensors(path):
        return _problem_of_safetensors(path)
    if text.startswith((b'<!doctype', b'<html', b'<?xml')):
        return 'is a web page, not a checkpoint; the link leads to a page: download the file itself'
    if text.startswith(b'version https://git-lfs'):
        return 'is a Git LFS pointer, not the file itself; fetch it with "git lfs pull"'
    if text.startswith((b'{', b'[')):
        return f'is a text file (an error message or JSON), not a checkpoint; {REMEDY}'
    if head.startswith(b'PK'):
        return _problem_of_zip(path)
    if not head.startswith(b'\x80'):
        return f'is neither a torch.save nor a safetensors file, or is damaged; {REMEDY}'
    return ''


def is_safetensors(path: Path) -> bool:
    """By suffix, or by content: eight bytes of header length, then a JSON header."""
    with open(path, 'rb') as file:
        head = file.read(9)
    length = int.from_bytes(head[:8], 'little')
    return path.suffix == '.safetensors' or (head[8:] == b'{' and length < path.stat().st_size)


def _problem_of_safetensors(path: Path) -> str:
    """Against the header, which states where every tensor begins and ends."""
    size = path.stat().st_size
    try:
        with open(path, 'rb') as file:
            length = int.from_bytes(file.read(8), 'little')
            if length > size:
                return f'is cut short or damaged: its header would be {length} bytes long; {REMEDY}'
            header = json.loads(file.read(length))
        ends = [entry['data_offsets'][1] for name, entry in header.items() if name[:2] != '__']
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError) as error:
        return f'is cut short or damaged: its header cannot be read ({error}); {REMEDY}'
    stated = 8 + length + max(ends, default=0)
    if stated != size:
        return f'is cut short or damaged: {size} bytes where its header states {stated}; {REMEDY}'
    return ''


def _problem_of_zip(path: Path) -> str:
    try:
        if not zipfile.is_zipfile(path):
            return f'is cut short: the end of the archive is missing; {REMEDY}'
        with zipfile.ZipFile(path) as archive:
            inside = {name.split('/', 1)[-1] for name in archive.namelist()}
            if 'constants.pkl' in inside or any('/code/' in name for name in archive.namelist()):
                return (
                    'is a TorchScript archive (a folded, compiled network such as *_fused.pt), which '
                    'holds no loadable state dict; take the .pth file of the same release'
                )
            if 'data.pkl' not in inside:
                return 'is a zip archive but not a checkpoint; unpack it and pass the file inside'
            # torch can be told to write no checksums: all are 0 then
            summed = any(record.CRC for record in archive.infolist())
            damaged = archive.testzip() if summed else None
    except Exception as error:  # a damaged archive can fail anywhere inside the reader
        return f'is damaged ({type(error).__name__}: {error}); {REMEDY}'
    return f'is damaged: the checksum of its record {damaged} differs; {REMEDY}' if damaged else ''
