"""What goes into an exported graph: the network, folded, between optional first and last steps."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import torch
from mmengine.config import Config
from torch import nn
from torch.nn import functional as F

from mmlk.export import compare

OUTPUTS = ('logits', 'probabilities', 'labels')


def part_of(model: nn.Module) -> str:
    """What the whole model is: the ``part`` of :class:`Graph`, or ``detector``."""
    if hasattr(model, 'roi_head'):
        return 'detector'
    return 'classifier' if hasattr(model, 'head') else 'segmentor'


class Graph(nn.Module):
    """A backbone, or a whole segmentor or classifier, as a function of the image alone.

    Args:
        model: Segmentor, classifier, or any model with a backbone.
        cfg: Its config, for the normalisation.
        part: ``backbone``: maps (N, C_i, H / s_i, W / s_i); ``segmentor``, ``classifier``: one
            output.
        normalize: Take RGB values from 0 to 255 and normalise them inside.
        output: Of a segmentor. ``logits`` (N, classes, H / s, W / s) as the head makes them;
            ``probabilities`` (N, classes, H, W) or ``labels`` (N, H, W), int64, at the size of the
            image. Of a classifier the same without height and width.

    Raises:
        ValueError: If the model has no such part, or the output has no meaning for it.

    Attributes:
        any_batch: Whether the graph takes any number of pictures, else one.
    """

    any_batch = True

    def __init__(
        self,
        model: nn.Module,
        cfg: Config,
        part: str = 'segmentor',
        normalize: bool = False,
        output: str = 'logits',
    ) -> None:
        super().__init__()
        settings = cfg.model.get('data_preprocessor') or {}
        self.part, self.normalize, self.output = part, normalize, output
        # the network may want BGR; the graph takes RGB in any case. MMPretrain's name is the second.
        self.flip = not (settings.get('bgr_to_rgb') or settings.get('to_rgb'))
        mean, std = settings.get('mean') or [0.0], settings.get('std') or [1.0]
        self.register_buffer('mean', torch.tensor(mean).reshape(1, -1, 1, 1))
        self.register_buffer('std', torch.tensor(std).reshape(1, -1, 1, 1))
        self.backbone = model.backbone
        if part == 'backbone':
            return
        if part == 'classifier':
            if getattr(model, 'head', None) is None or getattr(model, 'neck', None) is not None:
                raise ValueError(
                    'export: the model is no classifier of backbone and head; --part backbone '
                    'exports its backbone'
                )
            self.head = model.head
            return
        if not hasattr(model, 'decode_head') or isinstance(model.decode_head, nn.ModuleList):
            raise ValueError(
                'export: the model is no segmentor with one decode head; --part backbone exports '
                'its backbone'
            )
        self.neck = model.neck if getattr(model, 'with_neck', False) else nn.Identity()
        self.decode_head = model.decode_head
        if output != 'logits' and self.decode_head.out_channels == 1:
            raise ValueError(f'export: a head with one channel has no {output}; export logits')

    @property
    def output_names(self) -> list[str]:
        """One name per output."""
        if self.part != 'backbone':
            return [self.output]
        return [f'stride{stride}' for stride in self.backbone.out_strides]

    def prepare(self, image: torch.Tensor) -> torch.Tensor:
        """The image (N, 3, H, W), RGB, as the network wants it."""
        x = image.flip(1) if self.flip else image
        return (x - self.mean) / self.std if self.normalize else x

    def forward(self, image: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """Image (N, 3, H, W), RGB, to what the arguments ask for."""
        maps = self.backbone(self.prepare(image))
        if self.part == 'backbone':
            return maps
        whole = self.part == 'classifier'
        logits = self.head(maps) if whole else self.decode_head(self.neck(maps))
        if self.output == 'logits':
            return logits
        if not whole:
            align = self.decode_head.align_corners
            logits = F.interpolate(logits, image.shape[2:], mode='bilinear', align_corners=align)
        return logits.argmax(1) if self.output == 'labels' else logits.softmax(1)

    def compare(
        self, run: Callable[[torch.Tensor], list[torch.Tensor]], image: torch.Tensor, out: Path
    ) -> float:
        """Deviation of ``run``, the file ``out``, from this graph; see :func:`compare.maps`."""
        expected = self(image)
        return compare.maps(
            run(image), [expected] if isinstance(expected, torch.Tensor) else expected, out
        )

    def folded(self) -> Graph:
        """A copy that computes the same with standard operators of any image size."""
        graph = copy.deepcopy(self)
        graph.backbone.switch_to_deploy()
        if hasattr(getattr(graph, 'head', None), 'switch_to_deploy'):
            graph.head.switch_to_deploy()
        for parent in list(graph.modules()):
            for name, child in list(parent.named_children()):
                if type(child) is nn.AdaptiveAvgPool2d:
                    setattr(parent, name, MatrixPool(child.output_size))
                elif type(child).__name__ == 'Upsample' and _whole(child.scale_factor):
                    setattr(parent, name, WholeUpsample(child))
        return graph


class WholeUpsample(nn.Module):
    """Interpolation by a whole factor.

    MMSegmentation's module works out the size in floating point, which exporters take for a constant.

    Args:
        module: torch's or MMSegmentation's ``Upsample`` with a whole ``scale_factor``.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.factor = int(module.scale_factor)
        self.options = dict(mode=module.mode, align_corners=module.align_corners)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (N, C, H, W) to (N, C, factor * H, factor * W)."""
        height, width = x.shape[2:]
        return F.interpolate(x, (self.factor * height, self.factor * width), **self.options)


class MatrixPool(nn.Module):
    """Adaptive average pooling as two matrix products.

    Exporters can only express the pooling for sizes that are known and divisible.

    Args:
        output_size: Rows and columns of the result, or one number for both.
    """

    def __init__(self, output_size: int | tuple[int, int]) -> None:
        super().__init__()
        self.rows, self.columns = (
            output_size if isinstance(output_size, tuple) else (output_size, output_size)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (N, C, H, W) to their means (N, C, rows, columns) over overlapping bins."""
        rows = _bins(x.shape[2], self.rows, x)
        columns = _bins(x.shape[3], self.columns, x)
        return rows @ x @ columns.transpose(0, 1)


def _bins(length: int, count: int, like: torch.Tensor) -> torch.Tensor:
    """Weights (count, length) of the mean over each bin."""
    index = torch.arange(count, device=like.device)[:, None]
    place = torch.arange(length, device=like.device)
    start = torch.div(index * length, count, rounding_mode='floor')
    end = torch.div((index + 1) * length + count - 1, count, rounding_mode='floor')
    inside = (place >= start) & (place < end)
    return inside.to(like.dtype) / (end - start).to(like.dtype)


def _whole(factor: object) -> bool:
    return isinstance(factor, (int, float)) and float(factor).is_integer()
