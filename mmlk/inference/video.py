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


@contextmanager
def video_file(path: Path, rate: float) -> Iterator[VideoFile]:
    """A video that is there whole when the block ends well, and not at all otherwise.

    Args:
        path: File to make, ``.mp4``.
        rate: Pictures per second.
    """
    with partial_file(path) as partial:
        video = VideoFile(partial, rate)
        try:
            yield video
        finally:
            video.close()
        if partial.exists():  # a camera may be ended before its first picture
            os.replace(partial, path)


class VideoFile:
    """Writes pictures of one size, as MPEG-4.

    Args:
        path: File to write, ``.mp4``.
        rate: Pictures per second.
    """

    def __init__(self, path: Path, rate: float):
        self.path, self.rate = path, rate
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
                    f'predict: OpenCV cannot write the video {self.path.name}: this build has no codec '
                    'for MPEG-4; --no-pictures writes results alone'
                )
        self._writer.write(np.ascontiguousarray(np.asarray(picture.convert('RGB'))[..., ::-1]))

    def close(self) -> None:
        """End the file."""
        if self._writer is not None:
            self._writer.release()
