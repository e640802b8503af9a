"""Every config starts from a published file of the very backbone it builds."""

from __future__ import annotations

from pathlib import Path

import pytest
from mmengine.config import Config

from mmlk.checkpoints import zoo
from mmlk.checkpoints.keymaps import FAMILIES

ROOT = Path(__file__).parents[2] / 'configs'
SOURCES = {
    source: entry
    for entry in zoo.ENTRIES.values()
    for source in (entry.url, f'{zoo.SCHEME}{entry.name}')
}


def backbones() -> dict[str, dict]:
    """Backbone settings of every config that names weights."""
    found = {path.name: Config.fromfile(path).model.backbone for path in sorted(ROOT.glob('*.py'))}
    return {name: backbone for name, backbone in found.items() if backbone.get('init_cfg')}


BACKBONES = backbones()


@pytest.mark.parametrize('name', BACKBONES)
def test_weights_fit_the_backbone(name):
    backbone = BACKBONES[name]
    entry = SOURCES[backbone['init_cfg']['checkpoint']]
    title = FAMILIES[entry.family].title.replace('-', '')
    assert (backbone['type'], backbone['arch']) == (f'mmlk.{title}', entry.arch)
    assert entry.task == 'classification'
