"""What can be wrong with one image file, said in words.

Every function takes the content of a file. Decoders of images are lenient: OpenCV fills the missing
part of a JPEG with grey and says so on the standard error stream alone, without the file's name.
Containers that are no pictures (NumPy, HDF5, gzip, zip) are left to the loader that reads them.
"""

from __future__ import annotations

import io
import os
import re
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

_JPEG, _PNG, _TIFF = b'\xff\xd8', b'\x89PNG\r\n\x1a\n', (b'II*\0', b'MM\0*')
_CONTAINERS = (b'\x93NUMPY', b'\x89HDF', b'\x1f\x8b', b'PK\x03\x04')
_ORIENTATION, _WIDTH, _HEIGHT = 0x0112, 256, 257
# Offsets and lengths of a TIFF's strips, and of its tiles.
_TIFF_DATA = ((273, 279), (324, 325))
# Inside a scan, 0xff is followed by 0 (a data byte), a restart marker or fill; else a marker
# begins, of which these may follow a scan: end, tables, another scan, comment, application data.
_JPEG_INSIDE = re.compile(rb'\xff([^\x00\xd0-\xd7\xff])')
_JPEG_AFTER_SCAN = frozenset(b'\xd9\xc4\xda\xdb\xdc\xdd\xfe' + bytes(range(0xE0, 0xF0)))


def image_problem(content: bytes, decode: bool = False) -> str | None:
    """What is wrong with an image file, or None.

    Args:
        content: The file.
        decode: Decode the whole picture; without it, the structure is looked at (chunks and their
            checksums, segments, markers, offsets), which finds foreign and truncated files in a
            fraction of the time. A damaged JPEG body often shows in decoding alone.
    """
    if not content:
        return 'the file is empty'
    if content.startswith(_CONTAINERS):
        return None
    structure = next(
        (look for start, look in _STRUCTURES.items() if content.startswith(start)), None
    )
    problem = structure(content) if structure else None
    if problem:
        return problem
    try:
        with _opened(content) as picture:
            if decode:
                picture.load()
    except Exception as error:  # Pillow raises anything from SyntaxError to struct.error
        # Pillow knows few kinds of many-band and 16-bit TIFFs; their data are left to the loader.
        if isinstance(error, UnidentifiedImageError) and content.startswith(_TIFF):
            return None
        return f'cannot be decoded as an image ({first_line(error)})'
    if decode and content.startswith(_JPEG):
        complaint = _opencv_complaint(content)
        return f'the JPEG is damaged ({complaint})' if complaint else None
    return None


def image_size(content: bytes) -> tuple[int, int] | None:
    """(height, width) of an image file as OpenCV, the usual decoder, turns it; None of a container.

    Orientations that swap the sides are decoded, since decoders heed them in some formats only.

    Raises:
        OSError: If it is no image; ask :func:`image_problem` first.
    """
    if content.startswith(_CONTAINERS):
        return None
    if content.startswith(_TIFF):
        tags = _tiff_tags(content)
        width, height, orientation = tags[_WIDTH], tags[_HEIGHT], tags.get(_ORIENTATION, 1)
    else:
        with _opened(content) as picture:
            width, height = picture.size
            orientation = picture.getexif().get(_ORIENTATION, 1)
    if orientation < 5:
        return height, width
    import cv2

    return cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR).shape[:2]


@contextmanager
def _opened(content: bytes) -> Iterator[Image.Image]:
    """Pillow's picture, of any size: its limit is for pages of the web, aerial images exceed it."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with Image.open(io.BytesIO(content)) as picture:
            yield picture
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _jpeg_problem(content: bytes) -> str | None:
    # A JPEG's compressed data never holds these two markers, so the last scan of a whole file is
    # followed by an end marker, whatever thumbnail the header holds and whatever is appended.
    scan = content.rfind(b'\xff\xda')
    end = content.find(b'\xff\xd9', max(scan, 0))
    if scan < 0:
        return None  # a header alone; the decoder says what it lacks
    if end < 0:
        return 'the JPEG is truncated: its end marker is missing'
    length = int.from_bytes(content[scan + 2 : scan + 4], 'big')
    for marker in _JPEG_INSIDE.finditer(content, scan + 2 + length, end):
        if marker[1][0] not in _JPEG_AFTER_SCAN:
            return (
                f'the JPEG is damaged: byte {marker.start()} begins no valid marker '
                f'(ff {marker[1].hex()})'
            )
    return None


def _png_problem(content: bytes) -> str | None:
    position = len(_PNG)
    while position + 12 <= len(content):
        length, kind = struct.unpack_from('>I4s', content, position)
        end = position + 8 + length
        if end + 4 > len(content):
            break
        if zlib.crc32(content[position + 4 : end]) != int.from_bytes(content[end : end + 4], 'big'):
            return f'the PNG is damaged: wrong checksum of the chunk at byte {position}'
        if kind == b'IEND':
            return None
        position = end + 4
    return 'the PNG is truncated: its end chunk is missing'


def _tiff_problem(content: bytes) -> str | None:
    try:
        tags = _tiff_tags(content)
        for offsets, lengths in _TIFF_DATA:
            pieces = zip(np.atleast_1d(tags.get(offsets, ())), np.atleast_1d(tags.get(lengths, ())))
            for offset, length in pieces:
                if offset + length > len(content):
                    return 'the TIFF is truncated: its data reach beyond the end of the file'
        if _WIDTH not in tags or _HEIGHT not in tags:
            return 'cannot be decoded as an image (the TIFF states no width and height)'
        return None
    except Exception as error:
        return f'cannot be decoded as an image ({first_line(error)})'


def _tiff_tags(content: bytes) -> TiffImagePlugin.ImageFileDirectory_v2:
    """Tags of the first directory; Pillow opens few of the many-band and 16-bit files themselves."""
    file = io.BytesIO(content)
    tags = TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
    file.seek(tags.next)
    tags.load(file)
    return tags


def _opencv_complaint(content: bytes) -> str | None:
    """First line that OpenCV's decoder prints, or None; not to be used beside other threads."""
    import cv2

    kept = os.dup(2)
    try:
        with tempfile.TemporaryFile() as said:
            os.dup2(said.fileno(), 2)
            try:
                decoded = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
            finally:
                os.dup2(kept, 2)
            said.seek(0)
            lines = said.read().decode(errors='replace').strip().splitlines()
    finally:
        os.close(kept)
    return lines[0] if lines else 'OpenCV cannot decode it' if decoded is None else None


def first_line(error: Exception) -> str:
    """First line of an error's message, or its kind where it has none."""
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__


_STRUCTURES: dict[bytes | tuple[bytes, ...], Callable[[bytes], str | None]] = {
    _JPEG: _jpeg_problem,
    _PNG: _png_problem,
    _TIFF: _tiff_problem,
}
