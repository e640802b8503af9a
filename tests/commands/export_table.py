"""Prints how far each family's exported files are from their networks: the table of docs/deployment.md.

python -m tests.commands.export_table
"""

import tempfile
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

import mmlk
from mmlk.export import write
from mmlk.export.describe import describe
from mmlk.export.graph import Graph
from tests.cases import MICRO_ARCHS
from tests.commands.conftest import CLASSES, PALETTE

WIDTH = 8
DESCRIBED = dict(classes=CLASSES, palette=PALETTE)
# Heights and widths, each with one picture and with two; one is no multiple of anything.
SIZES = ((160, 192), (131, 227))


def segmentor(method, backbone):
    """A config of UperNet or Semantic FPN with a micro backbone, and its network."""
    cfg = Config.fromfile(mmlk.config_path(f'_base_/models/{method}.py'))
    cfg.merge_from_dict(Config.fromfile(mmlk.config_path('_base_/datasets/ade20k.py'))._cfg_dict)
    trunk = dict(type=f'mmlk.{backbone}', arch=MICRO_ARCHS[backbone])
    trunk.update(output_norm=method == 'upernet')
    channels = list(MODELS.build(dict(trunk)).out_channels)
    cfg.model.backbone = trunk
    if method == 'upernet':
        cfg.model.decode_head.update(in_channels=channels, channels=WIDTH, num_classes=4)
    else:
        cfg.model.neck.update(in_channels=channels, out_channels=WIDTH)
        cfg.model.decode_head.update(in_channels=[WIDTH] * 4, channels=WIDTH, num_classes=4)
    cfg.model.auxiliary_head = None
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmseg'):
        from mmengine.model import revert_sync_batchnorm

        network = revert_sync_batchnorm(MODELS.build(cfg.model)).eval()
    for value in [*network.parameters(), *network.buffers()]:
        if value.ndim == 1 and value.is_floating_point():
            nn.init.uniform_(value, 0.5, 1.5)  # folding constants must show
    return network, cfg


METHODS = dict(
    InceptionNeXt='upernet', SLaK='upernet', DCLSConvNeXt='upernet', RecNeXt='semantic_fpn'
)


def main() -> None:
    """One row per family and part, one column per format."""
    print('| family | part |', ' | '.join(write.SUFFIXES), '|')
    print('|---|---|' + '---|' * len(write.SUFFIXES))
    for family, method in METHODS.items():
        network, cfg = segmentor(method, family)
        for part in ('backbone', 'segmentor'):
            graph, found = Graph(network, cfg, part).eval(), []
            about = describe(graph, cfg, DESCRIBED, None)
            with tempfile.TemporaryDirectory() as folder:
                for suffix in write.SUFFIXES:
                    out = Path(folder) / f'model{suffix}'
                    found.append(f'{write.export_model(graph, out, about, sizes=SIZES):.1e}')
            name = part if part == 'backbone' else f'{part}, {method}'
            print(f'| {family} | {name} |', ' | '.join(found), '|', flush=True)


if __name__ == '__main__':
    main()
