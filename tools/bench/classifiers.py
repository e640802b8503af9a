"""Whole classifiers, ours and as their authors compute them, for ``benchmark_classifiers.py``."""

from __future__ import annotations

import sys
from pathlib import Path

from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import rivals  # noqa: E402

from mmlk import backbones  # noqa: E402
from mmlk.heads import HEADS  # noqa: E402

TYPES: dict[str, type[nn.Module]] = {
    'inceptionnext': backbones.InceptionNeXt,
    'slak': backbones.SLaK,
    'dcls_convnext': backbones.DCLSConvNeXt,
    'recnext': backbones.RecNeXt,
}


class Classifier(nn.Module):
    """A network without output norms, and the head of its family's published classifiers."""

    def __init__(self, trunk: nn.Module, head: nn.Module):
        super().__init__()
        self.trunk = trunk
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.trunk(x))

    def switch_to_deploy(self) -> Classifier:
        self.trunk.switch_to_deploy()
        self.head.switch_to_deploy()
        return self

    def fuse(self) -> Classifier:
        """What the authors fold before they measure; only RecNeXt's do."""
        if hasattr(self.trunk, 'fuse'):
            self.trunk.fuse()
            self.head.switch_to_deploy()
        return self.eval()


def _options(family: str, arch: str) -> dict:
    options = dict(arch=arch, output_norm=False, out_indices=(3,))
    # so large that a fault in a block would show in the scores
    return options if family == 'recnext' else dict(options, layer_scale_init=1.0)


def _head(family: str, arch: str) -> nn.Module:
    return HEADS[family](TYPES[family].resolve_arch(arch)['dims'][-1])


def ours(family: str, arch: str) -> Classifier:
    """The classifier for 1000 classes with this package's operators."""
    return Classifier(TYPES[family](**_options(family, arch)), _head(family, arch))


def authors(family: str, arch: str) -> nn.Module:
    """The same from torch's own operators alone, or timm's for InceptionNeXt."""
    if family == 'inceptionnext':
        import timm

        return timm.create_model(f'inception_next_{arch}')
    if family == 'recnext':
        found = TYPES[family].resolve_arch(arch)
        trunk = rivals.recnext(found['series'], found['dims'], found['depths'])
        return Classifier(trunk, _head(family, arch))
    make = dict(slak=rivals.slak, dcls_convnext=rivals.dcls_convnext)[family]
    return Classifier(make(**_options(family, arch)), _head(family, arch))
