"""A network and its head as one classifier, with the methods that timm's users expect."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any

from torch import Tensor, nn

from mmlk.checkpoints.classifiers import HEAD_PREFIX, split_classifier, split_in_place
from mmlk.checkpoints.keymaps import BACKBONE_PREFIX
from mmlk.checkpoints.load import load_state, read_checkpoint
from mmlk.checkpoints.report import Report
from mmlk.heads import HEADS
from mmlk.models.features import stage_info
from mmlk.networks.base import Network


class Classifier(nn.Module):
    """Class scores of images.

    Keys of the state dict are those of MMPretrain's ``ImageClassifier`` around the same backbone;
    ``load_state_dict`` also takes the authors' and timm's keys.

    Args:
        backbone: Network whose only output is that of its last stage.
        num_classes: Number of classes K; 0 leaves the last layer out.
        drop_rate: Probability of dropping a feature before the last layer.

    Attributes:
        num_features: Channels C of the last map.
        head_hidden_size: Width F of the features before the last layer.
        default_cfg: What timm calls so: address and preparation of the published weights.
        pretrained_cfg: The same.

    Raises:
        ValueError: If ``num_classes`` is negative, or the family's head drops nothing.
    """

    def __init__(self, backbone: Network, num_classes: int = 1000, drop_rate: float = 0.0):
        super().__init__()
        kind = HEADS[backbone.family]
        options: dict[str, Any] = {}
        if drop_rate and not kind.drops:
            raise ValueError(
                f'Classifier: drop_rate {drop_rate} has no place in the head of '
                f'{type(backbone).__name__}; use drop_path_rate'
            )
        if drop_rate:
            options.update(dropout=drop_rate)
        self.backbone = backbone
        self.head = kind(backbone.dims[-1], num_classes or 1, **options)
        if num_classes < 1:
            self.head.reset_classes(num_classes)
        self.num_features = backbone.dims[-1]
        self.head_hidden_size = self.head.num_features
        self.default_cfg: dict[str, Any] = {}
        self._register_load_state_dict_pre_hook(_split_keys, with_module=True)

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.head.num_classes

    @property
    def pretrained_cfg(self) -> dict[str, Any]:
        """Address and preparation of the published weights."""
        return self.default_cfg

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """One entry per stage: ``num_chs``, ``reduction`` and ``module``."""
        return stage_info(self.backbone)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W) to the last map (N, C, H / 32, W / 32)."""
        return self.backbone(x)[-1]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Last map to scores (N, K), or with ``pre_logits`` to the features (N, F) before them."""
        return self.head.pre_logits(x) if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W) to scores (N, K) before the softmax; with no classes features (N, F)."""
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module | tuple[nn.Module, ...]:
        """The last layer, or the two of a head with two branches."""
        layers = self.head.class_modules()
        return layers[0] if len(layers) == 1 else tuple(layers)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new last layer for another number of classes; 0 leaves it out.

        Args:
            num_classes: Number of classes.
            global_pool: None or ``avg``, the pooling that all heads have.

        Raises:
            ValueError: If another pooling is asked for, or the number is negative.
        """
        if global_pool not in (None, 'avg'):
            raise ValueError(
                f'reset_classifier: global_pool {global_pool!r} must be None or "avg"; '
                f'forward_features gives the map before pooling'
            )
        self.head.reset_classes(num_classes)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass to save memory."""
        for stage in self.backbone.stages:
            stage.recomputes = enable

    def switch_to_deploy(self) -> Classifier:
        """Fold network and head for inference, in place, and return the module in eval mode."""
        self.backbone.switch_to_deploy()
        self.head.switch_to_deploy()
        return self.eval()

    def load_pretrained(
        self, source: str | PathLike, adapt_stem: str | None = None, **options: Any
    ) -> Report:
        """Load a published or trained classifier: all of it, or nothing and an error.

        Of a file for another number of classes the last layers stay as they are, and a warning says
        so.

        Args:
            source: Path, URL, ``mmlk://<name>``, or ``hf-hub:<owner>/<name>``.
            adapt_stem: As in :func:`mmlk.checkpoints.load.load_into`.
            options: Further arguments of :func:`mmlk.checkpoints.read.read_checkpoint`.

        Returns:
            What became of the keys of the network.

        Raises:
            FileNotFoundError: If there is no such file.
            RuntimeError: If the file cannot be read as a checkpoint.
            ValueError: If it does not cover network and head. Nothing is changed then.
        """
        content, info = read_checkpoint(source, **options)
        parts = _parts(self.backbone.family, content)
        head = self.head.loadable(parts[HEAD_PREFIX])
        broken = [k for k, v in head.items() if v.is_floating_point() and not v.isfinite().all()]
        if broken:
            raise ValueError(
                f'load_pretrained: {source} has NaN or infinite values in the head '
                f'({", ".join(broken[:3])}); it comes from a diverged run or is damaged'
            )
        report = load_state(
            self.backbone,
            self.backbone.family,
            parts[BACKBONE_PREFIX],
            str(source),
            adapt_stem=adapt_stem,
            notes=info.notes,
        )
        own = self.head.state_dict()
        own.update((key, value) for key, value in head.items() if key in own)
        self.head.load_state_dict(own)
        return report


def _parts(family: str, content: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """State dicts of backbone and head, by the prefix that a classifier's keys have."""
    parts: dict[str, dict[str, Tensor]] = {BACKBONE_PREFIX: {}, HEAD_PREFIX: {}}
    for key, name in split_classifier(family, content).items():
        prefix = HEAD_PREFIX if name.startswith(HEAD_PREFIX) else BACKBONE_PREFIX
        parts[prefix][name.removeprefix(prefix)] = content[key]
    return parts


def _split_keys(module: Classifier, state_dict: dict, prefix: str, *_: Any) -> None:
    """Before any load: an author's names become those of backbone and head."""
    split_in_place(module.backbone.family, state_dict, prefix)
