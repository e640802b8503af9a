"""Pictures from wherever a user keeps them: files, folders, patterns, videos, cameras, arrays."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageOps

from mmlk.data.files import first_line, image_problem

IMAGES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')
VIDEOS = ('.mp4', '.avi', '.mov', '.mkv', '.webm', '.m4v', '.mpg', '.mpeg')
_USUAL_RATE = 25.0  # pictures per second, where a camera or a video does not say
# Pillow's modes of more than 8 bits, which its conversion to RGB cuts off at 255.
_DEEP_MODES = ('I', 'F')

Source = Any
"""Path, pattern, camera number, array (H, W, 3) uint8 RGB, PIL image, or a sequence of these."""


@dataclass
class Frame:
    """One picture, or why there is none.

    Attributes:
        name: Relative path without suffix, which outputs are named after.
        image: uint8 array (H, W, 3), BGR as OpenCV decodes; None if the file is broken.
        problem: What is wrong with the file, '' if nothing is.
        path: The file; None where the picture is in none of its own.
    """

    name: str
    image: np.ndarray | None
    problem: str = ''
    path: Path | None = None


class Frames:
    """Pictures of a source, one by one.

    Args:
        source: See :data:`Source`. Folders are searched with their subfolders.

    Attributes:
        total: Number of pictures, None where it is unknown (cameras, some videos).
        live: Whether it is a camera, whose pictures end with the program.
        video: Name and pictures per second of a video or camera; None for pictures.

    Raises:
        ValueError: If the source does not exist, holds no picture, is of another kind, or is a video
            or camera that cannot be opened.
    """

    def __init__(self, source: Source) -> None:
        self._video = _video(source)
        self._items = [] if self._video is not None else list(_items(source))
        self.live = isinstance(self._video, int)
        self.total: int | None = len(self._items)
        self.video: tuple[str, float] | None = None
        if self._video is not None:
            count, rate = _frame_count_and_rate(self._video)
            self.total = count if count > 0 and not self.live else None
            self.video = _video_name(self._video), rate if rate > 0 else _USUAL_RATE

    @property
    def files(self) -> list[Path]:
        """The files of the pictures; a video, a camera and arrays have none."""
        return [item for _, item in self._items if isinstance(item, Path)]

    def __iter__(self) -> Iterator[Frame]:
        if self._video is not None:
            yield from _read_video(self._video)
            return
        for name, item in self._items:
            yield _read_file(name, item) if isinstance(item, Path) else Frame(name, item)


def _video(source: Source) -> Path | int | None:
    """The video file or camera number that ``source`` is, if it is one."""
    if isinstance(source, bool):
        return None
    if isinstance(source, int) or (isinstance(source, str) and source.isdecimal()):
        return int(source)
    if isinstance(source, (str, PathLike)) and Path(source).suffix.lower() in VIDEOS:
        if Path(source).is_file():
            return Path(source)
    return None


def _items(source: Source) -> Iterator[tuple[str, Path | np.ndarray]]:
    """(name, file or BGR array) of every picture."""
    if isinstance(source, (str, PathLike)):
        yield from _files(Path(source).expanduser())
    elif not isinstance(source, Sequence):
        yield '000000', _array(source)
    elif not source:
        raise ValueError('predict: the source is an empty sequence')
    elif all(isinstance(item, (str, PathLike)) for item in source):
        yield from _named([Path(item).expanduser() for item in source])
    else:
        for index, item in enumerate(source):
            file = isinstance(item, (str, PathLike))
            yield f'{index:06d}', Path(item).expanduser() if file else _array(item)


def _files(path: Path) -> Iterator[tuple[str, Path]]:
    """Pictures of a folder, a file or a pattern."""
    if path.is_dir():
        found = pictures_below(path)
        if not found:
            raise ValueError(f'predict: {path} holds no picture ({", ".join(IMAGES)})')
        yield from _named(found, path)
        return
    found = sorted(Path(p) for p in glob.glob(str(path), recursive=True) if Path(p).is_file())
    found = [path] if path.is_file() else found
    if not found:
        raise ValueError(
            f'predict: {str(path)!r} is no file, no folder, and no pattern that any file fits'
        )
    yield from _named(found)


def pictures_below(folder: Path) -> list[Path]:
    """The pictures of a folder and its subfolders, sorted; linked folders count, each folder once."""
    seen: set[str] = set()
    found: list[Path] = []
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        found += [Path(place, name) for name in names if Path(name).suffix.lower() in IMAGES]
    # a link to nothing is no file, but should be told
    return sorted(path for path in found if path.is_file() or path.is_symlink())


def _named(files: list[Path], root: Path | None = None) -> Iterator[tuple[str, Path]]:
    """Each file with its path below ``root``, by default below the folder that all have in common.

    The suffix is left out where no other file is called the same, with or without its own.
    """
    root = root or _common_folder(files)
    paths = [file.relative_to(root) for file in files]
    stems = [path.with_suffix('') for path in paths]
    count, whole = Counter(stems), set(paths)
    for stem, path, file in zip(stems, paths, files, strict=True):
        # what is written for one file must not overwrite what is written for another
        yield (stem if count[stem] == 1 and stem not in whole else path).as_posix(), file


def _common_folder(paths: list[Path]) -> Path:
    folder = paths[0].parent
    while not all(path.is_relative_to(folder) for path in paths):
        folder = folder.parent
    return folder


def _array(picture: Any) -> np.ndarray:
    """BGR array of a PIL image or an RGB array."""
    if isinstance(picture, Image.Image):
        if picture.mode.startswith(_DEEP_MODES):
            raise ValueError(
                f'predict: a PIL image of mode {picture.mode!r} has more than 8 bits, which Pillow '
                'cuts off; give the path of its file, or scale its values to 0 to 255'
            )
        # as its file would be: turned as the camera says
        picture = ImageOps.exif_transpose(picture).convert('RGB')
    array = np.asarray(picture)
    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or not array.size:
        raise ValueError(
            f'predict: a picture as an array must be uint8 (H, W, 3) in RGB order, '
            f'not {array.dtype} {array.shape}'
        )
    return np.ascontiguousarray(array[..., ::-1])


def _read_file(name: str, path: Path) -> Frame:
    try:
        return Frame(name, decode(path.read_bytes()), path=path)
    except OSError as error:
        return Frame(name, None, f'{path}: cannot be read ({error.strerror})', path)
    except ValueError as error:
        return Frame(name, None, f'{path}: {error}', path)


def decode(content: bytes | bytearray) -> np.ndarray:
    """The picture in an image file as uint8 (H, W, 3), BGR, turned as its camera says.

    Grey becomes three equal channels, of 16 bits the upper 8 remain, and alpha is left out.

    Raises:
        ValueError: Saying what is wrong with the file.
    """
    problem = image_problem(bytes(content))
    image = None
    if not problem:
        try:
            image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
        except cv2.error as error:  # beyond its limit of pixels
            problem = f'cannot be decoded by OpenCV ({first_line(error)})'
    if image is None:
        raise ValueError(problem or 'cannot be decoded by OpenCV')
    return image


def _open(video: Path | int) -> cv2.VideoCapture:
    level = cv2.setLogLevel(0)  # what OpenCV prints would stand around the error
    try:
        capture = cv2.VideoCapture(video if isinstance(video, int) else str(video))
    finally:
        cv2.setLogLevel(level)
    if not capture.isOpened():
        raise ValueError(
            f'predict: there is no camera {video}'
            if isinstance(video, int)
            else f'predict: OpenCV cannot open the video {video}: it is damaged, or this build '
            f'has no codec for it; convert it to MP4 with H.264'
        )
    return capture


def _frame_count_and_rate(video: Path) -> tuple[int, float]:
    capture = _open(video)
    count, rate = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)), capture.get(cv2.CAP_PROP_FPS)
    capture.release()
    return count, rate


def _video_name(video: Path | int) -> str:
    return f'camera{video}' if isinstance(video, int) else video.stem


def _read_video(video: Path | int) -> Iterator[Frame]:
    capture, index = _open(video), 0
    stem = _video_name(video)
    try:
        while True:
            read, image = capture.read()
            if not read:
                break
            yield Frame(f'{stem}_{index:06d}', image)
            index += 1
    finally:
        capture.release()
    if index == 0:
        raise ValueError(f'predict: no frame of {video} can be decoded')
