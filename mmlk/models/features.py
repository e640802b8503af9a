"""A network as timm's ``features_only`` returns one: maps, and a description of them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from os import PathLike
from typing import Any

from torch import Tensor, nn

from mmlk.checkpoints.report import Report
from mmlk.networks.base import Network


class FeatureInfo:
    """Channels, strides and modules of a network's stages.

    Without ``index`` a method answers for the stages whose maps are returned, with a number for that
    stage, with a sequence for those stages.

    Args:
        info: One entry per stage: ``num_chs``, ``reduction`` and ``module``.
        out_indices: Stages whose maps are returned.
    """

    def __init__(self, info: Sequence[dict[str, Any]], out_indices: Sequence[int]):
        self.info = [dict(entry) for entry in info]
        self.out_indices = tuple(out_indices)

    def get(self, key: str, index: int | Sequence[int] | None = None) -> Any:
        """Values of ``key``."""
        if isinstance(index, int):
            return self.info[index][key]
        return [self.info[i][key] for i in (self.out_indices if index is None else index)]

    def get_dicts(
        self, keys: Sequence[str] | None = None, index: int | Sequence[int] | None = None
    ) -> Any:
        """Entries, of which ``keys`` are kept if given."""
        kept = self.info if keys is None else [{k: entry[k] for k in keys} for entry in self.info]
        if isinstance(index, int):
            return kept[index]
        return [kept[i] for i in (self.out_indices if index is None else index)]

    def channels(self, index: int | Sequence[int] | None = None) -> Any:
        """Channels of the maps."""
        return self.get('num_chs', index)

    def reduction(self, index: int | Sequence[int] | None = None) -> Any:
        """Pixels of the image per pixel of the maps, along one axis."""
        return self.get('reduction', index)

    def module_name(self, index: int | Sequence[int] | None = None) -> Any:
        """Names of the modules that return the maps."""
        return self.get('module', index)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.info[index]

    def __len__(self) -> int:
        return len(self.info)


class FeatureExtractor(nn.Module):
    """The maps of some stages of a network.

    Args:
        backbone: The network; keys of the state dict are its own below ``backbone.``, as those of
            :class:`~mmlk.models.classifier.Classifier`.
    """

    def __init__(self, backbone: Network):
        super().__init__()
        self.backbone = backbone
        self.default_cfg: dict[str, Any] = {}

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """Address and preparation of the published weights."""
        return self.default_cfg

    @property
    def feature_info(self) -> FeatureInfo:
        """What is known of the maps."""
        return FeatureInfo(stage_info(self.backbone), self.backbone.out_indices)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images (N, 3, H, W) to maps (N, C_i, H / s_i, W / s_i)."""
        return list(self.backbone(x))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass to save memory."""
        for stage in self.backbone.stages:
            stage.recomputes = enable

    def switch_to_deploy(self) -> FeatureExtractor:
        """Fold for inference, in place, and return the module in eval mode."""
        self.backbone.switch_to_deploy()
        return self.eval()

    def load_pretrained(self, source: str | PathLike, **options: Any) -> Report:
        """Load the network's part of any file, see :func:`mmlk.checkpoints.load.load_into`."""
        return self.backbone.load_pretrained(source, **options)


def stage_info(backbone: Network) -> list[dict[str, Any]]:
    """The network's description of its stages, with modules named from the model around it."""
    return [
        dict(copy.copy(entry), module=f'backbone.{entry["module"]}')
        for entry in backbone.feature_info
    ]


def as_indices(out_indices: int | Sequence[int] | None, stages: int) -> tuple[int, ...]:
    """Stages whose maps are returned, as timm reads ``out_indices``.

    Args:
        out_indices: Stages, negative ones from the end; a number for the last so many; None for all.
        stages: Number of stages.

    Raises:
        ValueError: If a number is out of range.
    """
    if out_indices is None:
        return tuple(range(stages))
    if isinstance(out_indices, int):
        if not 1 <= out_indices <= stages:
            raise ValueError(
                f'out_indices {out_indices} is not the number of last stages, 1..{stages}'
            )
        return tuple(range(stages - out_indices, stages))
    return tuple(i + stages if -stages <= i < 0 else i for i in out_indices)
