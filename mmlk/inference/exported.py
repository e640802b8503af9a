"""A segmentor, detector or classifier in a file of ``mmlk export``, used as the file describes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from mmlk.export.write import runner
from mmlk.inference.masks import paste
from mmlk.inference.model import Model

_INTERPOLATIONS = dict(
    nearest=cv2.INTER_NEAREST,
    bilinear=cv2.INTER_LINEAR,
    bicubic=cv2.INTER_CUBIC,
    area=cv2.INTER_AREA,
    lanczos=cv2.INTER_LANCZOS4,
)


class ExportedModel(Model):
    """What :func:`mmlk.load_model` returns for an ``.onnx`` or ``.pt2`` file.

    Args:
        path: The file.
        device: ``cpu``, the only place where these files are run here.

    Raises:
        ValueError: If the file is missing, predicts nothing, or another device is asked for.
    """

    def __init__(self, path: str, device: str | torch.device) -> None:
        if not Path(path).is_file():
            raise ValueError(f'load_model: there is no file {path!r}')
        if torch.device(device).type != 'cpu':
            raise ValueError(
                f'load_model: exported files run on the CPU here, not on {device}; load the '
                f'checkpoint instead'
            )
        self._graph, self.description = runner(Path(path))
        part, outputs = self.description['part'], self.description['outputs']
        if part == 'backbone':
            raise ValueError(f'load_model: {path} holds a {part}, which predicts nothing')
        if part == 'classifier' and outputs == ['labels']:
            raise ValueError(
                f'load_model: {path} gives the label alone and no scores; export the classifier '
                f'with --output probabilities'
            )
        channels = self.description['input']['channels']
        if channels not in ('RGB', 'GRAY'):
            raise ValueError(f'load_model: {path} takes {channels}, which pictures do not have')
        task, classes = self.description['task'], self.description['classes']
        super().__init__(task, classes, self.description['palette'])

    def _prepare(self, image: np.ndarray) -> tuple[tuple[torch.Tensor, tuple], Any]:
        tensor = prepare(image, self.description)
        entry = self.description['input']
        # a graph of fixed shape, or of a detector, takes one picture at a time
        alone = object() if entry['shape'] else None
        return (tensor, image.shape[:2]), (tuple(tensor.shape), image.shape[:2], alone)

    def _forward(self, samples: list[tuple[torch.Tensor, tuple]]) -> list[dict[str, np.ndarray]]:
        outputs = self._graph(torch.stack([tensor for tensor, _ in samples]))
        if self.task == 'detection':
            return [self._objects(outputs, *samples[0])]
        (output,) = outputs
        inner, size = samples[0][0].shape[1:], samples[0][1]
        kind = self.description['outputs'][0]
        if self.task == 'classification':
            scores = output.softmax(1) if kind == 'logits' else output
            return [dict(class_scores=one.numpy()) for one in scores]
        if kind == 'labels':
            labels = F.interpolate(output[:, None].float(), size, mode='nearest')[:, 0]
        else:
            options = dict(mode='bilinear', align_corners=self.description['align_corners'])
            if kind == 'logits':
                output = F.interpolate(output, inner, **options)
            labels = F.interpolate(output, size, **options).argmax(1)
        return [dict(labels=one.numpy().astype(np.int32)) for one in labels]

    def _objects(
        self, outputs: list[torch.Tensor], seen: torch.Tensor, size: tuple[int, int]
    ) -> dict[str, np.ndarray]:
        """What a detector found, in pixels of the picture before it was resized to ``seen``."""
        boxes, scores, labels, *masks = outputs
        height, width = (side / inner for side, inner in zip(size, seen.shape[1:], strict=True))
        boxes = boxes * torch.tensor([width, height, width, height])
        found = dict(boxes=boxes.numpy(), scores=scores.numpy(), box_labels=labels.numpy())
        if masks:
            found['masks'] = paste(
                masks[0], boxes, size, self.description['mask_threshold']
            ).numpy()
        return found


def prepare(image: np.ndarray, description: dict[str, Any]) -> torch.Tensor:
    """A BGR picture (H, W, 3) of uint8 as the input (C, H', W') of an exported file."""
    entry = description['input']
    grey = entry['channels'] == 'GRAY'
    resized = resize(
        cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) if grey else image, description['resize']
    )
    pixels = np.array(resized[..., None] if grey else resized[..., ::-1])
    tensor = torch.from_numpy(pixels).permute(2, 0, 1).float()
    if entry['values'] == '0 to 255' or not entry['mean']:
        return tensor
    mean, std = (torch.tensor(entry[key])[:, None, None] for key in ('mean', 'std'))
    return (tensor - mean) / std


def resize(image: np.ndarray, steps: list[dict[str, Any]]) -> np.ndarray:
    """``image`` (H, W, 3) or (H, W) at the size that the model sees it at.

    Args:
        image: uint8.
        steps: ``resize`` of an exported file's description.
    """
    for step in steps:
        height, width = image.shape[:2]
        if step['type'] == 'CenterCrop':
            image = _crop(image, step['crop_size'])
            continue
        if step['type'] == 'ResizeToMultiple':
            divisor = step['size_divisor']
            target = tuple(-(-side // divisor) * divisor for side in (width, height))
        elif step['type'] == 'ResizeEdge':
            target = _size_by_edge(width, height, step['scale'], step.get('edge', 'short'))
        else:
            scale = step.get('scale') or [
                int(side * step['scale_factor'] + 0.5) for side in (width, height)
            ]
            target = tuple(scale)
            if step.get('keep_ratio'):
                factor = min(max(scale) / max(height, width), min(scale) / min(height, width))
                target = tuple(int(side * factor + 0.5) for side in (width, height))
        kind = step.get('interpolation', 'bilinear')
        if step.get('backend') == 'pillow':
            resized = Image.fromarray(image).resize(target, Image.Resampling[kind.upper()])
            image = np.asarray(resized)
        else:
            image = cv2.resize(image, target, interpolation=_INTERPOLATIONS[kind])
    return image


def _size_by_edge(width: int, height: int, scale: int, edge: str) -> tuple[int, int]:
    """Width and height after one edge (short, long, width, height) has been brought to ``scale``."""
    along = dict(short=width < height, long=width > height, width=True, height=False)[edge]
    return (scale, int(scale * height / width)) if along else (int(scale * width / height), scale)


def _crop(image: np.ndarray, size: int | list[int]) -> np.ndarray:
    """The centre of ``image``, at most ``size`` (one number, or width and height)."""
    width, height = (size, size) if isinstance(size, int) else size
    top = max(0, round((image.shape[0] - height) / 2))
    left = max(0, round((image.shape[1] - width) / 2))
    return image[top : top + height, left : left + width]
