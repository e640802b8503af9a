"""What can be wrong with one image or label file, said in words.

Every function takes the content of a file and returns what is wrong with it, or None. Decoders of
images are lenient: OpenCV fills the missing part of a truncated JPEG with grey and says nothing.
"""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from mmlk.data.classes import ADE20K_CLASSES

_JPEG_START, _JPEG_SCAN, _JPEG_END = b'\xff\xd8', b'\xff\xda', b'\xff\xd9'


def image_problem(content: bytes, decode: bool = False) -> str | None:
    """What is wrong with an image file.

    Args:
        content: The file.
        decode: Decode the whole picture; without it, the header and the end are looked at, which
            costs microseconds and finds foreign and truncated files.
    """
    if not content:
        return 'the file is empty'
    try:
        with Image.open(io.BytesIO(content)) as picture:
            if decode:
                picture.load()
    except Exception as error:  # Pillow raises anything from SyntaxError to struct.error
        return f'cannot be decoded as an image ({_first_line(error)})'
    # A JPEG's compressed data never holds these two markers, so the last scan of a whole file is
    # followed by an end marker, whatever thumbnail the header holds and whatever is appended.
    if content.startswith(_JPEG_START) and content.rfind(_JPEG_END) < content.rfind(_JPEG_SCAN):
        return 'the JPEG is truncated: its end marker is missing'
    return None


def image_size(content: bytes) -> tuple[int, int]:
    """(height, width) from the header of an image file, the EXIF orientation applied.

    Raises:
        OSError: If it is no image; ask :func:`image_problem` first.
    """
    with Image.open(io.BytesIO(content)) as picture:
        width, height = picture.size
        turned = picture.getexif().get(0x0112, 1) >= 5
    return (width, height) if turned else (height, width)


def label_problem(
    content: bytes, max_label: int = ADE20K_CLASSES, size: tuple[int, int] | None = None
) -> str | None:
    """What is wrong with a label map.

    Args:
        content: The PNG file, 0 = ignored, classes from 1.
        max_label: Greatest value allowed.
        size: (height, width) of the image the labels belong to, if known.
    """
    if not content:
        return 'the file is empty'
    try:
        with Image.open(io.BytesIO(content)) as picture:
            labels = np.asarray(picture)
    except Exception as error:
        return f'cannot be decoded as a label map ({_first_line(error)})'
    if labels.ndim != 2:
        return (
            f'has {labels.shape[2]} channels where a label map has one; the full ADE20K data set '
            'stores its labels like this, the 2016 challenge release (ADEChallengeData2016) does '
            'not'
        )
    if labels.max() > max_label:
        bad = labels > max_label
        row, column = np.argwhere(bad)[0]
        return (
            f'holds the label value {labels[row, column]} at row {row}, column {column} '
            f'({int(bad.sum())} pixel(s) beyond {max_label}); allowed are 0 (ignored) and '
            f'1..{max_label}'
        )
    if size is not None and labels.shape != tuple(size):
        return (
            f'is {labels.shape[0]}x{labels.shape[1]} (height x width) while its image is '
            f'{size[0]}x{size[1]}'
        )
    return None


def _first_line(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
