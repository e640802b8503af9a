"""The authors' formulation of any backbone of this package, for whole configs and for tables."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from torch import Tensor, nn

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent)]

import rivals  # noqa: E402

from mmlk.networks import MetaNeXt  # noqa: E402
from mmlk.networks.base import Network  # noqa: E402


class Normed(nn.Module):
    """A trunk that returns four maps, and the norms that dense prediction puts on them.

    Args:
        trunk: Returns the maps of all stages.
        norms: Name of the norm -> norm, for the stages whose maps are returned, as our backbones have
            them.
        stages: Indices of these stages.
    """

    def __init__(self, trunk: nn.Module, norms: dict[str, nn.Module], stages: tuple[int, ...]):
        super().__init__()
        for (
            name,
            norm,
        ) in norms.items():  # first, as in our backbones: weights go over in this order
            self.add_module(name, norm)
        self.trunk = trunk
        self._stages = stages

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        maps = self.trunk(x)
        named = dict(self.named_children())
        chosen = ((i, maps[i]) for i in self._stages)
        return tuple(named[f'norm{i}'](y) if f'norm{i}' in named else y for i, y in chosen)

    def fuse(self) -> Normed:
        """What the authors fold for inference; only RecNeXt's do."""
        if hasattr(self.trunk, 'fuse'):
            self.trunk.fuse()
        return self.eval()


FAMILIES = ('inceptionnext', 'slak', 'dcls_convnext', 'recnext')
"""Families whose authors' formulation stands in this folder."""


def authors(ours: Network) -> nn.Module:
    """The network that ``ours`` is, as its authors compute it, with the same outputs.

    Args:
        ours: Backbone of one of the four families, not folded; drop path is left out.

    Raises:
        ValueError: If it is a `MetaNeXt`, which has no authors, or of another family.
    """
    if isinstance(ours, MetaNeXt):
        raise ValueError('authors: MetaNeXt has no rival; name the family that it is a setting of')
    if ours.family not in FAMILIES:
        raise ValueError(
            f'authors: {type(ours).__name__} has no rival here, only {", ".join(FAMILIES)} have; name '
            "a factory of the authors' network instead, as module:factory"
        )
    norms = {name: child for name, child in ours.named_children() if _is_output(name)}
    if ours.family == 'inceptionnext':
        import timm
        from timm.models.inception_next import InceptionDWConv2d

        bands = {key: ours.arch[key] for key in ('band_kernel_size', 'branch_ratio')}
        trunk = timm.create_model(
            'inception_next_tiny',
            features_only=True,
            token_mixers=partial(InceptionDWConv2d, **bands),
            **{key: ours.arch[key] for key in ('depths', 'dims', 'mlp_ratios')},
        )
        return Normed(trunk, _of_torch(norms), ours.out_indices)
    if ours.family == 'recnext':
        trunk = rivals.recnext(ours.arch['series'], ours.arch['dims'], ours.arch['depths'])
        return Normed(trunk, _of_torch(norms), ours.out_indices)
    makers = dict(slak=rivals.slak, dcls_convnext=rivals.dcls_convnext)
    scale = None if getattr(ours.stages[0][0], 'gamma', None) is None else 1.0
    return makers[ours.family](
        arch=ours.arch,
        in_channels=ours.in_channels,
        layer_scale_init=scale,
        out_indices=ours.out_indices,
        output_norm=bool(norms),
    )


def _is_output(name: str) -> bool:
    return name.startswith('norm') and name[4:].isdecimal()


def _of_torch(norms: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """The batch norms of torch that ours are."""
    return {
        name: nn.BatchNorm2d(each.num_features, each.eps, each.momentum)
        for name, each in norms.items()
    }
