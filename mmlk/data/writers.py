"""Generated data as files: scenes in the layouts of ADE20K and COCO 2017, pictures in class folders.

All three fit into one root without meeting::

    ROOT/images/{training,validation}/ADE_{train,val}_00000001.jpg      ADE20K
    ROOT/annotations/{training,validation}/ADE_{train,val}_00000001.png
    ROOT/{train2017,val2017}/000000000001.jpg                           COCO
    ROOT/annotations/instances_{train,val}2017.json
    ROOT/{train,val}/CLASS/00000001.jpg                                 one thing per picture
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from typing import TypeVar

import numpy as np
from PIL import Image

from mmlk.data.classes import COCO, COCO_CATEGORIES
from mmlk.data.masks import bounding_box, polygons, run_lengths
from mmlk.data.pictures import CLASSES, make_picture
from mmlk.data.scene import SPLITS, Scene, make_scene

FORMATS = ('ade20k', 'coco')
"""Layouts of scenes."""
CLASS_FOLDERS = 'classes'
"""Layout of pictures that show one thing each."""
JPEG_QUALITY = 92
_SHORT = dict(training='train', validation='val')
_FIRST_COCO_ID = dict(training=1, validation=1_000_001)


T = TypeVar('T')


@dataclass(frozen=True)
class Parameters:
    """What determines a generated data set.

    Attributes:
        formats: Members of :data:`FORMATS`, or :data:`CLASS_FOLDERS` alone.
        train: Number of training scenes or pictures.
        val: Number of those for validation.
        height: Nominal height, pixels.
        width: Nominal width, pixels.
        seed: Seed of the set.
    """

    formats: tuple[str, ...]
    train: int
    val: int
    height: int
    width: int
    seed: int

    def as_dict(self) -> dict:
        """As JSON would return it."""
        return dict(asdict(self), formats=list(self.formats))


@dataclass(frozen=True)
class EncodedScene:
    """One scene as file contents by relative path, and as entries of a COCO file."""

    files: dict[str, bytes]
    image: dict
    annotations: list[dict]


def dataset_files(parameters: Parameters, jobs: int = 1) -> Iterator[tuple[str, bytes]]:
    """Relative path and content of every file, scene by scene.

    Args:
        parameters: The data set.
        jobs: Processes that paint; the result does not depend on it.
    """
    for split, count in zip(SPLITS, (parameters.train, parameters.val)):
        if CLASS_FOLDERS in parameters.formats:
            yield from _map(partial(encode_picture, parameters, split), count, jobs)
            continue
        images, annotations = [], []
        for scene in _map(partial(encode_scene, parameters, split), count, jobs):
            yield from scene.files.items()
            images.append(scene.image)
            for annotation in scene.annotations:
                annotations.append(dict(annotation, id=len(annotations) + 1))
        if 'coco' in parameters.formats:
            path = f'annotations/instances_{_SHORT[split]}2017.json'
            yield path, coco_file(images, annotations)


def coco_file(images: list[dict], annotations: list[dict]) -> bytes:
    """An instance annotation file with all 80 categories."""
    content = dict(
        info=dict(description='mmlk generated scenes', version='1.0'),
        licenses=[],
        images=images,
        annotations=annotations,
        categories=COCO_CATEGORIES,
    )
    return json.dumps(content, separators=(',', ':')).encode()


def _map(encode: Callable[[int], T], count: int, jobs: int) -> Iterator[T]:
    """``encode`` of 0 .. count - 1, in order, by one process or several."""
    if jobs == 1:
        yield from map(encode, range(count))
        return
    with get_context('spawn').Pool(jobs) as pool:
        yield from pool.imap(encode, range(count), chunksize=8)


def encode_picture(parameters: Parameters, split: str, index: int) -> tuple[str, bytes]:
    """Paint picture ``index`` of a split: relative path and content."""
    picture, label = make_picture(
        parameters.seed, split, index, parameters.height, parameters.width
    )
    path = f'{_SHORT[split]}/{CLASSES[label]}/{index + 1:08d}.jpg'
    return path, _encode(picture, 'JPEG', quality=JPEG_QUALITY)


def encode_scene(parameters: Parameters, split: str, index: int) -> EncodedScene:
    """Paint scene ``index`` of a split and encode it in every format asked for."""
    scene = make_scene(parameters.seed, split, index, parameters.height, parameters.width)
    picture = _encode(scene.image, 'JPEG', quality=JPEG_QUALITY)
    files = {}
    if 'ade20k' in parameters.formats:
        name = f'{split}/ADE_{_SHORT[split]}_{index + 1:08d}'
        files[f'images/{name}.jpg'] = picture
        files[f'annotations/{name}.png'] = _encode(scene.labels, 'PNG')
    identity = _FIRST_COCO_ID[split] + index
    if 'coco' in parameters.formats:
        files[f'{_SHORT[split]}2017/{identity:012d}.jpg'] = picture
    height, width = scene.labels.shape
    image = dict(id=identity, file_name=f'{identity:012d}.jpg', height=height, width=width)
    return EncodedScene(files, image, coco_annotations(scene, identity))


def coco_annotations(scene: Scene, image_id: int) -> list[dict]:
    """COCO annotations of a scene, without ids: polygons, or run lengths for crowds and holes."""
    annotations = []
    for instance in scene.instances:
        outlines = None if instance.crowd else polygons(instance.mask)
        annotations.append(
            dict(
                image_id=image_id,
                category_id=COCO[instance.category],
                iscrowd=int(instance.crowd),
                area=float(instance.mask.sum()),
                bbox=bounding_box(instance.mask),
                segmentation=outlines or run_lengths(instance.mask),
            )
        )
    return annotations


def _encode(array: np.ndarray, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **options)
    return buffer.getvalue()
