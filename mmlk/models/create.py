"""``mmlk.create_model``: networks by name, for people who have torch alone."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import Any

from mmlk import networks
from mmlk.checkpoints import zoo
from mmlk.checkpoints.classifiers import HEAD_PREFIX
from mmlk.checkpoints.keymaps import BACKBONE_PREFIX
from mmlk.heads import HEADS
from mmlk.models import names
from mmlk.models.classifier import Classifier
from mmlk.models.features import FeatureExtractor, as_indices

_FIRST_CONVOLUTION = {
    'inceptionnext': 'stem.0',
    'slak': 'downsample_layers.0.0',
    'dcls_convnext': 'downsample_layers.0.0',
    'recnext': 'stem.stem.0.conv',
    'replknet': 'stem.0.conv',
    'unireplknet': 'downsample_layers.0.0',
}
_PARTS = {'block', 'stem', 'token_mixer', 'channel_mixer'}
"""Arguments that only `MetaNeXt` has."""
_CROP = 0.875
"""Share of the resized image's side that published files were evaluated on, below `_WHOLE` pixels."""
_WHOLE = 384


def create_model(
    name: str,
    pretrained: bool | str | PathLike = False,
    in_chans: int = 3,
    features_only: bool = False,
    out_indices: int | Sequence[int] | None = None,
    num_classes: int = 1000,
    *,
    checkpoint_path: str | PathLike | None = None,
    drop_rate: float = 0.0,
    **options: Any,
) -> Classifier | FeatureExtractor:
    """A classifier, or a network that returns feature maps, in training mode.

    Args:
        name: One of :func:`mmlk.list_models`, with or without a tag.
        pretrained: Load the published weights of this name (True), or a file: path, URL,
            ``mmlk://<name>``, ``hf-hub:<owner>/<name>``.
        in_chans: Channels of the image. With weights for another number the first convolution is
            adapted as in timm: its slices summed for one channel, else repeated and scaled.
        features_only: Return the maps of the stages in a list and no scores.
        out_indices: With ``features_only``, the stages whose maps are returned, from 0; negative
            ones count from the end, and one number means so many last ones. All by default.
        num_classes: Number of classes; 0 gives the features before the last layer. Where the file
            has another number, the last layer is new, and a warning says so.
        checkpoint_path: A file instead of ``pretrained``.
        drop_rate: Probability of dropping a feature before the last layer (InceptionNeXt).
        options: Further arguments of the network, such as ``drop_path_rate``. With ``token_mixer`` or
            another part of :class:`~mmlk.networks.MetaNeXt` it is that network, of this name's size.

    Returns:
        A :class:`~mmlk.models.classifier.Classifier` or a
        :class:`~mmlk.models.features.FeatureExtractor`.

    Raises:
        ValueError: If the name is unknown (with the closest ones), arguments contradict each other,
            or the file does not cover the model.
        FileNotFoundError: If there is no such file.
        RuntimeError: If a file cannot be downloaded or read.
    """
    variant, entry = names.find(name)
    source = _source(name, entry, pretrained, checkpoint_path)
    kind, arch = networks.FAMILIES[variant.family], variant.arch
    if _PARTS & options.keys():
        kind, arch = networks.MetaNeXt, variant.name
    stages = len(networks.FAMILIES[variant.family].arch_settings[variant.arch]['dims'])
    if features_only:
        indices = as_indices(out_indices, stages)
    elif out_indices is not None:
        raise ValueError(f'create_model: out_indices {out_indices} needs features_only=True')
    else:
        indices = (stages - 1,)
    options.setdefault('output_norm', False)
    backbone = kind(arch, in_channels=in_chans, out_indices=indices, **options)
    model: Classifier | FeatureExtractor
    if features_only:
        model = FeatureExtractor(backbone)
    else:
        model = Classifier(backbone, num_classes, drop_rate)
    model.default_cfg = pretrained_cfg(variant, entry)
    if source is not None:
        how = None if in_chans == 3 else 'sum' if in_chans == 1 else 'repeat'
        model.load_pretrained(source, adapt_stem=how)
    return model


def _source(
    name: str,
    entry: zoo.Entry,
    pretrained: bool | str | PathLike,
    checkpoint_path: str | PathLike | None,
) -> str | PathLike | None:
    """What to load, None for random weights."""
    if checkpoint_path and pretrained:
        raise ValueError(
            f'create_model: {name} gets pretrained={pretrained!r} and '
            f'checkpoint_path={checkpoint_path!r}; give one'
        )
    if isinstance(pretrained, bool):
        return f'{zoo.SCHEME}{entry.name}' if pretrained else checkpoint_path or None
    return pretrained


def pretrained_cfg(variant: names.Variant, entry: zoo.Entry) -> dict[str, Any]:
    """What timm calls a pretrained configuration: where the weights are, and what images they want.

    Args:
        variant: The network.
        entry: Its weights.
    """
    side = entry.image_size
    layers = [f'{HEAD_PREFIX}{name}' for name in HEADS[variant.family].class_layers]
    return dict(
        url=entry.url,
        architecture=variant.name,
        tag=entry.tag,
        num_classes=entry.classes,
        input_size=(3, side, side),
        crop_pct=_CROP if side < _WHOLE else 1.0,
        interpolation='bicubic',
        mean=entry.mean,
        std=entry.std,
        first_conv=BACKBONE_PREFIX + _FIRST_CONVOLUTION[variant.family],
        classifier=layers[0] if len(layers) == 1 else tuple(layers),
        license=entry.licence.lower(),
        origin_url=f'https://github.com/{entry.repository}',
    )
