"""The tables that name what a file holds agree with the backbones that load it."""

from __future__ import annotations

import pytest
import torch

from mmlk import backbones  # noqa: F401  (registers the families)
from mmlk.checkpoints import keymaps, zoo
from mmlk.registry import MODELS

KINDS = {kind.family: kind for kind in MODELS.module_dict.values() if hasattr(kind, 'family')}
ARCHS = [(family, arch) for family, kind in KINDS.items() for arch in kind.arch_settings]


def test_every_family_and_variant_is_known():
    assert set(KINDS) <= set(keymaps.FAMILIES)
    for family, kind in KINDS.items():
        assert set(kind.arch_settings) == set(keymaps.FAMILIES[family].archs)
        published = {entry.arch for entry in zoo.ENTRIES.values() if entry.family == family}
        assert published - {None} == set(kind.arch_settings)


@pytest.mark.slow
@pytest.mark.parametrize('family,arch', ARCHS)
def test_a_backbone_is_recognised_by_its_own_keys(family, arch):
    with torch.device('meta'):
        state = KINDS[family](arch=arch, output_norm=True).state_dict()
    found = keymaps.describe({key: tuple(value.shape) for key, value in state.items()})
    assert (found.family, found.arch) == (family, arch)
