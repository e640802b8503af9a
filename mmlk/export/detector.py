"""A two-stage detector as a function of one image: proposals, suppression, boxes and masks inside."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from mmengine.config import Config
from torch import nn
from torch.nn import functional as F

from mmlk.export import compare
from mmlk.export.graph import Graph

OUTPUTS = ('boxes', 'scores', 'labels', 'masks')


class DetectorGraph(Graph):
    """Mask R-CNN, Cascade Mask R-CNN, or one of them without masks, for one picture.

    The modules are the detector's own. What stands between them is written so that every step but the
    last has a fixed number of rows: proposals that are not there have score zero.

    Args:
        model: A detector of MMDetection.
        cfg: Its config, for the normalisation.
        normalize: Take RGB values from 0 to 255 and normalise them inside.

    Raises:
        ValueError: If the detector has a part that the graph does not know.
    """

    any_batch = False

    def __init__(self, model: nn.Module, cfg: Config, normalize: bool = False) -> None:
        super().__init__(model, cfg, 'backbone', normalize)
        self.part = 'detector'
        _refuse_unknown(model)
        roi_head = model.roi_head
        self.divisor = (cfg.model.get('data_preprocessor') or {}).get('pad_size_divisor', 1)
        self.neck, self.rpn_head = model.neck, model.rpn_head
        self.levels = model.neck.num_outs
        self.box_heads = _as_list(roi_head.bbox_head)
        self.box_extractors = _as_list(roi_head.bbox_roi_extractor)
        self.with_masks = bool(roi_head.with_mask)
        self.mask_heads = _as_list(roi_head.mask_head) if self.with_masks else nn.ModuleList()
        self.mask_extractors = (
            _as_list(roi_head.mask_roi_extractor) if self.with_masks else nn.ModuleList()
        )
        self.proposal_settings, self.settings = model.rpn_head.test_cfg, roi_head.test_cfg
        self.register_buffer('score_threshold', torch.tensor(float(self.settings.score_thr)))

    @property
    def output_names(self) -> list[str]:
        """One name per output."""
        return list(OUTPUTS if self.with_masks else OUTPUTS[:3])

    @property
    def mask_threshold(self) -> float:
        """Probability from which a pixel belongs to the object."""
        return float(self.settings.get('mask_thr_binary', 0.5))

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What is found in one image.

        Args:
            image: (1, 3, H, W), RGB.

        Returns:
            boxes: Corners x1, y1, x2, y2 in pixels of the image (n, 4), best first.
            scores: (n,), 0 to 1.
            labels: Class indices (n,), int64.
            masks: Probability of each pixel of the box (n, h, w), h and w 28 as a rule; the mask's
                border is that of the box.
        """
        size = image.shape[2:]
        maps = [*self.neck(self.backbone(self._padded(self.prepare(image))))]
        while len(maps) < self.levels:
            maps.append(maps[-1][:, :, ::2, ::2])
        boxes, scores, labels = self._boxes(maps, *self._proposals(maps, size), size)
        if not self.with_masks:
            return boxes, scores, labels
        masks = [
            head(_pooled(extractor, maps, boxes))
            for head, extractor in zip(self.mask_heads, self.mask_extractors, strict=True)
        ]
        masks = sum(_of_labels(one, labels).sigmoid() for one in masks) / len(masks)
        return boxes, scores, labels, masks

    def compare(
        self, run: Callable[..., list[torch.Tensor]], image: torch.Tensor, out: Path
    ) -> float:
        """As the base class, by objects: with all scores, as noise holds none likely, and with none."""
        threshold = self.score_threshold.clone()
        self.score_threshold.zero_()
        try:
            expected = self(image)
        finally:
            self.score_threshold.copy_(threshold)
        found = run(image, score_threshold=0.0)
        if len(run(image, score_threshold=2.0)[0]):
            raise RuntimeError(f'export: {out} finds objects above any score; nothing was written')
        return compare.detections(found, expected, out)

    def folded(self) -> DetectorGraph:
        """A copy that computes the same with standard operators of any image size."""
        graph = super().folded()
        if not graph.neck.add_extra_convs:
            # the pooling by which FPN makes further maps ties torch.export to odd or to even sizes
            graph.neck.num_outs = min(graph.levels, len(graph.neck.lateral_convs))
        return graph

    def _padded(self, image: torch.Tensor) -> torch.Tensor:
        """Zeros below and on the right, up to what the preprocessor pads to."""
        height, width = (
            (side + self.divisor - 1) // self.divisor * self.divisor for side in image.shape[2:]
        )
        return F.pad(image, (0, width - image.shape[3], 0, height - image.shape[2]))

    def _proposals(
        self, maps: list[torch.Tensor], size: torch.Size
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Boxes (``max_per_img``, 4), and which of them are any."""
        settings, head = self.proposal_settings, self.rpn_head
        priors = head.prior_generator.grid_priors(
            [x.shape[2:] for x in maps], device=maps[0].device
        )
        boxes, scores = [], []
        for logits, deltas, prior in zip(*head(maps), priors, strict=True):
            score = logits.permute(0, 2, 3, 1).reshape(-1).sigmoid()
            deltas = deltas.permute(0, 2, 3, 1).reshape(-1, 4)
            # a map with fewer places than wanted is filled up with a score that no place has
            filled = torch.cat([score, score.new_full((settings.nms_pre,), -1.0)])
            score, index = filled.topk(settings.nms_pre)
            index = torch.where(score >= 0, index, 0)
            box = _clipped(head.bbox_coder.decode(prior[index], deltas[index]), size)
            sides = box[:, 2:] - box[:, :2]
            large = (sides > settings.get('min_bbox_size', -1)).all(1)
            scores.append(torch.where(large, score, -1.0))
            boxes.append(box)
        box, score = torch.cat(boxes), torch.cat(scores)
        level = torch.arange(len(maps), device=box.device).repeat_interleave(settings.nms_pre)
        kept = _suppressed(box, score, level, settings.nms.iou_threshold, size)
        count = settings.max_per_img
        box = torch.cat([box[kept], box.new_zeros(count, 4)])[:count]
        return box, torch.cat([score[kept], score.new_full((count,), -1.0)])[:count] >= 0

    def _boxes(
        self,
        maps: list[torch.Tensor],
        boxes: torch.Tensor,
        real: torch.Tensor,
        size: torch.Size,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Boxes (n, 4), scores (n,) and labels (n,) of the proposals after all stages."""
        total = torch.zeros(1, device=boxes.device)
        stages = len(self.box_heads)
        for stage, (head, extractor) in enumerate(
            zip(self.box_heads, self.box_extractors, strict=True), start=1
        ):
            logits, deltas = head(_pooled(extractor, maps, boxes))
            total = total + logits
            decoded = _clipped(head.bbox_coder.decode(boxes, deltas).reshape(-1, 4), size)
            decoded = decoded.reshape(len(boxes), -1, 4)
            if stage < stages:
                label = logits[:, :-1].argmax(1) if decoded.shape[1] > 1 else torch.zeros_like(real)
                boxes = _of_labels(decoded, label.long())
        scores = (total / stages).softmax(1)[:, :-1] * real[:, None]
        classes = scores.shape[1]
        index = (scores.reshape(-1) > self.score_threshold).nonzero()[:, 0]
        decoded = decoded.expand(-1, classes, -1).reshape(-1, 4)[index]
        score, label = scores.reshape(-1)[index], index % classes
        kept = _suppressed(decoded, score, label, self.settings.nms.iou_threshold, size)
        kept = kept[: self.settings.max_per_img]
        return decoded[kept], score[kept], label[kept]


def _refuse_unknown(model: nn.Module) -> None:
    """Raise if a part computes something else than the graph does: one of another type, or a setting.

    Raises:
        ValueError: Naming the part.
    """
    roi, rpn = getattr(model, 'roi_head', None), getattr(model, 'rpn_head', None)
    if roi is None or rpn is None or getattr(model, 'neck', None) is None:
        raise ValueError(
            f'export: {type(model).__name__} is no detector of backbone, neck, rpn_head and '
            f'roi_head; --part backbone exports its backbone'
        )
    boxes = _as_list(roi.bbox_head)
    masks = _as_list(roi.mask_head) if roi.with_mask else []
    extractors = [*_as_list(roi.bbox_roi_extractor)]
    extractors += _as_list(roi.mask_roi_extractor) if roi.with_mask else []
    coders = [rpn.bbox_coder, *(head.bbox_coder for head in boxes)]
    suppressions = [rpn.test_cfg.nms, roi.test_cfg.nms]
    counts = [rpn.test_cfg.nms_pre, rpn.test_cfg.max_per_img, roi.test_cfg.max_per_img]
    wrong = [
        *_others(model.neck, 'FPN'),
        *_others(rpn, 'RPNHead'),
        *_others(rpn.prior_generator, 'AnchorGenerator'),
        *_others(roi, 'StandardRoIHead', 'CascadeRoIHead'),
        *(type(one).__name__ for one in boxes if not hasattr(one, 'shared_convs')),
        *(name for one in masks for name in _others(one, 'FCNMaskHead')),
        *(name for one in extractors for name in _others(one, 'SingleRoIExtractor')),
        *(name for one in coders for name in _others(one, 'DeltaXYWHBBoxCoder')),
        *(f'nms={dict(one)}' for one in suppressions if {*one} != {'type', 'iou_threshold'}),
        *(f'nms={dict(one)}' for one in suppressions if one.get('type') != 'nms'),
        *('clip_border=False' for one in coders if not one.clip_border),
        *('a classification loss of its own' for one in boxes if one.custom_cls_channels),
        *('a count of boxes without a limit' for count in counts if count <= 0),
        *('shared_head' for _ in [0] if roi.with_shared_head),
        *('use_sigmoid=False in rpn_head' for _ in [0] if not rpn.use_sigmoid_cls),
        *(
            f'pool_mode={layer.pool_mode!r}'
            for one in extractors
            for layer in one.roi_layers
            if layer.pool_mode != 'avg'
        ),
    ]
    if wrong:
        raise ValueError(
            f'export: the detector has {", ".join(dict.fromkeys(wrong))}, which the exported graph '
            f'does not compute; --part backbone exports its backbone'
        )


def _others(module: object, *known: str) -> list[str]:
    return [] if type(module).__name__ in known else [type(module).__name__]


def _pooled(extractor: nn.Module, maps: list[torch.Tensor], boxes: torch.Tensor) -> torch.Tensor:
    """Features (n, C, h, w) of the boxes, each from the map that the extractor chooses by its size."""
    from torchvision.ops import roi_align

    rois = F.pad(boxes, (1, 0))
    maps = maps[: extractor.num_inputs]
    level = extractor.map_roi_levels(rois, len(maps))
    pooled: torch.Tensor | None = None
    for index, (layer, x) in enumerate(zip(extractor.roi_layers, maps, strict=True)):
        own = level == index
        # Boxes of other maps become empty, which costs nothing; a graph has no loop over them.
        regions = torch.where(own[:, None], rois, 0.0)
        found = roi_align(
            x, regions, layer.output_size, layer.spatial_scale, layer.sampling_ratio, layer.aligned
        )
        pooled = found if pooled is None else torch.where(own[:, None, None, None], found, pooled)
    return pooled


def _suppressed(
    boxes: torch.Tensor,
    scores: torch.Tensor,
    groups: torch.Tensor,
    threshold: float,
    size: torch.Size,
) -> torch.Tensor:
    """Indices of the boxes that no better one of their group overlaps, best first."""
    from torchvision.ops import nms

    # groups are moved apart by more than the picture, in which all boxes lie
    offset = groups.to(boxes.dtype) * (size[0] + size[1])
    # torchvision tells torch.export that at least two are kept, so two stand outside the picture
    outside = boxes.new_tensor([[-2.0, -2.0, -1.0, -1.0], [-4.0, -4.0, -3.0, -3.0]])
    kept = nms(
        torch.cat([boxes + offset[:, None], outside]),
        torch.cat([scores, scores.new_full((2,), -2.0)]),
        threshold,
    )
    kept = kept[(kept < boxes.shape[0]).nonzero()[:, 0]]
    return kept[scores[kept].argsort(descending=True)]


def _clipped(boxes: torch.Tensor, size: torch.Size) -> torch.Tensor:
    """Boxes (n, 4) inside the picture."""
    x, y = boxes[:, 0::2].clamp(0, size[1]), boxes[:, 1::2].clamp(0, size[0])
    return torch.stack([x, y], dim=2).flatten(1)


def _of_labels(values: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """``values[i, labels[i]]`` of values (n, classes, ...); class 0 where there is one for all."""
    if values.shape[1] == 1:
        return values[:, 0]
    index = labels.reshape(-1, *[1] * (values.ndim - 1)).expand(-1, 1, *values.shape[2:])
    return values.gather(1, index)[:, 0]


def _as_list(module: nn.Module) -> nn.ModuleList:
    return module if isinstance(module, nn.ModuleList) else nn.ModuleList([module])
