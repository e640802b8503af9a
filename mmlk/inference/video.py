"""Predictions of a video as a video."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from mmlk.cli.files import partial_file

# MPEG-4 counts time in parts of a second, at most so many; OpenCV takes the rate's decimals for them.
_PARTS_OF_SECOND = 65535


@contextmanager
def video_file(path: Path, rate: float) -> Iterator[VideoFile]:
    """A video that is there whole when the block ends well, and not at all otherwise.

    Args:
        path: File to make, ``.mp4``.
        rate: Pictures per second.

    Raises:
        ValueError: If OpenCV cannot write such videos here.
        OSError: If less was written than added.
    """
    with partial_file(path) as partial:
        video = VideoFile(partial, rate)
        try:
            yield video
        finally:
            video.close()
        if video.count:  # a camera may be ended before its first picture
            video.check(path)
            os.replace(partial, path)


class VideoFile:
    """Writes pictures of one size, as MPEG-4.

    Args:
        path: File to write, ``.mp4``.
        rate: Pictures per second, of which two decimals are kept, of high rates none.

    Attributes:
        count: Number of pictures that were added.
    """

    def __init__(self, path: Path, rate: float):
        self.path, self.count = path, 0
        decimals = 2 if 100 * rate < _PARTS_OF_SECOND else 0
        self.rate = min(max(round(rate, decimals), 0.01), _PARTS_OF_SECOND)
        self._writer: cv2.VideoWriter | None = None

    def add(self, picture: Image.Image) -> None:
        """Append a picture.

        Raises:
            ValueError: If OpenCV cannot write such videos here.
        """
        if self._writer is None:
            code = cv2.VideoWriter_fourcc(*'mp4v')
            self._writer = cv2.VideoWriter(str(self.path), code, self.rate, picture.size)
            if not self._writer.isOpened():
                raise ValueError(
                    f'predict: OpenCV cannot write the video {self.path.name} of {picture.width} x '
                    f'{picture.height} pixels at {self.rate:g} pictures per second: this build has no '
                    'codec for MPEG-4; --no-pictures writes results alone'
                )
        self._writer.write(np.ascontiguousarray(np.asarray(picture.convert('RGB'))[..., ::-1]))
        self.count += 1

    def close(self) -> None:
        """End the file."""
        if self._writer is not None:
            self._writer.release()

    def check(self, path: Path) -> None:
        """Raise if the ended file holds other than what was added, which OpenCV does not tell.

        Args:
            path: Named in the error.

        Raises:
            OSError: With both numbers.
        """
        video = cv2.VideoCapture(str(self.path))
        found = int(video.get(cv2.CAP_PROP_FRAME_COUNT)) if video.isOpened() else 0
        video.release()
        if found != self.count:
            raise OSError(
                f'predict: {found} of {self.count} pictures of {path} could be written; is the disk '
                'full?'
            )
