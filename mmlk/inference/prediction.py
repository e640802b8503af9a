"""What a model says about one picture, and the forms in which it is kept."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mmlk.cli.files import complete
from mmlk.data.classes import COCO
from mmlk.inference import pictures


@dataclass
class Prediction:
    """The prediction for one picture of H x W pixels.

    Attributes:
        name: What the picture is called: its relative path without suffix, or its number.
        image: The picture, uint8 (H, W, 3), RGB.
        classes: Names of all classes of the model.
        palette: One RGB colour per class.
        labels: Class index of every pixel (H, W); of a segmentor alone.
        boxes: Corners x1, y1, x2, y2 in pixels (n, 4), best first; of a detector alone.
        scores: Confidence of each box (n,), 0 to 1.
        box_labels: Class index of each box (n,).
        masks: Pixels of each object (n, H, W), bool; None for a detector without masks.
        class_scores: Probability of each class (classes,), 0 to 1; of a classifier alone.
    """

    name: str
    image: np.ndarray
    classes: tuple[str, ...]
    palette: list[tuple[int, int, int]]
    labels: np.ndarray | None = None
    boxes: np.ndarray | None = None
    scores: np.ndarray | None = None
    box_labels: np.ndarray | None = None
    masks: np.ndarray | None = None
    class_scores: np.ndarray | None = None

    def top(self, count: int = 5) -> list[dict[str, Any]]:
        """The likeliest classes of the picture, best first: ``index``, ``name`` and ``score``.

        Args:
            count: How many, at most all.

        Raises:
            ValueError: If ``count`` is not positive, or the model is no classifier.
        """
        if self.class_scores is None:
            raise ValueError('top: a segmentor or detector gives no scores of the whole picture')
        if count < 1:
            raise ValueError(f'top: {count} classes; ask for at least one')
        order = np.argsort(-self.class_scores, kind='stable')[:count]
        return [
            dict(index=int(i), name=self.classes[i], score=round(float(self.class_scores[i]), 5))
            for i in order
        ]

    def above(self, threshold: float) -> Prediction:
        """The same prediction with only those boxes that score at least ``threshold``."""
        if self.boxes is None:
            return self
        kept = self.scores >= threshold
        masks = None if self.masks is None else self.masks[kept]
        return Prediction(
            self.name,
            self.image,
            self.classes,
            self.palette,
            boxes=self.boxes[kept],
            scores=self.scores[kept],
            box_labels=self.box_labels[kept],
            masks=masks,
        )

    def picture(self, opacity: float = 0.5, legend: bool = True) -> Image.Image:
        """The image under its prediction, and a legend of the classes that occur below it.

        A classifier's image is untouched, and has its five likeliest classes below it.

        Args:
            opacity: Weight of the colours, 0 to 1.
            legend: Whether to add the legend, whose height depends on what occurs.
        """
        if self.class_scores is not None:
            rows = [(entry['name'], entry['score']) for entry in self.top()]
            return pictures.add_scores(Image.fromarray(self.image), rows)
        if self.labels is not None:
            drawn = pictures.paint_labels(self.image, self.labels, self.palette, opacity)
            occurring = np.unique(self.labels)
        else:
            drawn = pictures.paint_objects(self, opacity)
            occurring = np.unique(self.box_labels)
        if not legend:
            return drawn
        return pictures.add_legend(drawn, occurring.tolist(), self.classes, self.palette)

    def label_image(self) -> Image.Image:
        """The label map as a PNG-ready image: class indices, coloured by the palette up to 256 classes.

        Raises:
            ValueError: For a detector or classifier, which labels no pixels.
        """
        if self.labels is None:
            raise ValueError('label_image: a detector or classifier predicts no label map')
        if len(self.classes) > 256:
            return Image.fromarray(self.labels.astype(np.uint16))
        image = Image.fromarray(self.labels.astype(np.uint8))
        image.putpalette(np.asarray(self.palette, np.uint8).reshape(-1).tolist())
        return image

    def coco(self, image_id: int, first_id: int = 1) -> list[dict[str, Any]]:
        """The boxes and masks as annotations of a COCO file.

        Args:
            image_id: Number of the image in that file.
            first_id: Number of the first annotation.
        """
        numbers = [category['id'] for category in coco_categories(self.classes)]
        annotations = []
        for index, (box, score, label) in enumerate(zip(self.boxes, self.scores, self.box_labels)):
            x1, y1, x2, y2 = (round(float(value), 2) for value in box)
            entry = dict(
                id=first_id + index,
                image_id=image_id,
                category_id=numbers[label],
                bbox=[x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)],
                area=round((x2 - x1) * (y2 - y1), 2),
                score=round(float(score), 5),
                iscrowd=0,
            )
            if self.masks is not None:
                entry['segmentation'] = _run_lengths(self.masks[index])
                entry['area'] = int(self.masks[index].sum())
            annotations.append(entry)
        return annotations


def coco_categories(classes: tuple[str, ...]) -> list[dict[str, Any]]:
    """Categories of a COCO file: COCO's own numbers where all names are COCO's, else from 1 on."""
    own = all(name in COCO for name in classes)
    return [
        dict(id=COCO[name] if own else index, name=name)
        for index, name in enumerate(classes, start=1)
    ]


def save(prediction: Prediction, folder: Path, picture: bool, labels: bool) -> None:
    """Write the overlay to ``folder/pictures`` and the label map to ``folder/labels``."""
    if picture:
        _write(prediction.picture(), folder / 'pictures' / f'{prediction.name}.jpg')
    if labels:
        _write(prediction.label_image(), folder / 'labels' / f'{prediction.name}.png')


def _write(image: Image.Image, path: Path) -> None:
    with complete(path) as partial:
        image.save(partial)


def _run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """COCO's compressed form of a mask."""
    from pycocotools import mask as coder

    coded = coder.encode(np.asfortranarray(mask.astype(np.uint8)))
    return dict(size=coded['size'], counts=coded['counts'].decode('ascii'))
