"""What every model in use has in common: from a source to predictions, batch by batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any

import cv2
import numpy as np

from mmlk.data.files import first_line
from mmlk.inference.prediction import Prediction
from mmlk.inference.sources import Frame, Frames, Source


class Model(ABC):
    """A segmentor, detector or classifier that predicts pictures.

    Args:
        task: ``segmentation``, ``detection`` or ``classification``.
        classes: Names of the classes.
        palette: One RGB colour per class.
    """

    def __init__(self, task: str, classes: Iterable[str], palette: Iterable[Iterable[int]]) -> None:
        self.task = task
        self.classes = tuple(classes)
        self.palette = [tuple(map(int, colour)) for colour in palette]

    def predict(
        self, source: Source, batch_size: int = 1, skipped: list[str] | None = None
    ) -> list[Prediction]:
        """Predictions of all pictures of ``source``, in order.

        Args:
            source: Path, folder, pattern, video, camera number, uint8 array (H, W, 3) in RGB order,
                PIL image, or a sequence of pictures. For long videos and cameras use
                :meth:`stream`, which keeps nothing.
            batch_size: Pictures that run together, if the model sees them at the same size.
            skipped: A list that takes what is wrong with pictures that cannot be read, or that the
                model does not take, such as tiny ones; without it such a picture is an error.

        Raises:
            ValueError: If the source does not exist, or a picture of it is broken or unsuitable.
        """
        return list(self.stream(Frames(source), batch_size, skipped))

    def stream(
        self, source: Source | Frames, batch_size: int = 1, skipped: list[str] | None = None
    ) -> Iterator[Prediction]:
        """As :meth:`predict`, one by one while the source is read."""
        if batch_size < 1:
            raise ValueError(f'predict: batch size {batch_size} must be at least 1')
        frames = source if isinstance(source, Frames) else Frames(source)
        waiting: list[tuple[Frame, Any]] = []
        shape = None
        for frame in frames:
            if frame.problem:
                _leave_out([frame.problem], skipped)
                continue
            try:
                sample, next_shape = self._prepare(frame.image)
            except (ValueError, cv2.error) as error:
                _leave_out([_unsuitable(frame, error)], skipped)
                continue
            if waiting and (next_shape != shape or len(waiting) == batch_size):
                yield from self._run(waiting, skipped)
                waiting = []
            shape = next_shape
            waiting.append((frame, sample))
        if waiting:
            yield from self._run(waiting, skipped)

    def _run(
        self, batch: list[tuple[Frame, Any]], skipped: list[str] | None
    ) -> Iterator[Prediction]:
        try:
            results = self._forward([sample for _, sample in batch])
        except ValueError as error:  # all of the batch have the size that is refused
            _leave_out([_unsuitable(frame, error) for frame, _ in batch], skipped)
            return
        for (frame, _), result in zip(batch, results, strict=True):
            yield Prediction(
                frame.name,
                np.ascontiguousarray(frame.image[..., ::-1]),
                self.classes,
                self.palette,
                **result,
            )

    @abstractmethod
    def _prepare(self, image: np.ndarray) -> tuple[Any, Any]:
        """A BGR picture (H, W, 3) as the model takes it, and what pictures of one batch must share."""

    @abstractmethod
    def _forward(self, samples: list[Any]) -> list[dict[str, np.ndarray]]:
        """The fields of :class:`Prediction` that the model fills, for each sample of a batch."""


def _leave_out(problems: list[str], skipped: list[str] | None) -> None:
    """Add to the list of what is left out; without one, it is an error."""
    if skipped is None:
        raise ValueError(f'predict: {problems[0]}')
    skipped += problems


def _unsuitable(frame: Frame, error: Exception) -> str:
    """That the model does not take a picture which is as such whole."""
    height, width = frame.image.shape[:2]
    return f'{frame.path or frame.name}: {width} x {height} pixels: {first_line(error)}'
