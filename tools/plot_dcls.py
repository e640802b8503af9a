"""Draw positions and constructed kernels of a layer with learnable spacings.

One panel per channel: the kernel as colours and a circle on every element, filled where its weight is
positive. Without a checkpoint the initial positions are drawn.

    python tools/plot_dcls.py configs/upernet_dcls_convnext_t_ade20k.py dcls.png
    python tools/plot_dcls.py CONFIG dcls.png --checkpoint work_dirs/run/iter_500.pth --layer stages.2.0
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
import torch
from mmengine.config import Config

import mmlk  # noqa: F401  (resolves mmlk:: paths from here on)
from mmlk.backbones import DCLSConvNeXt
from mmlk.checkpoints.read import read_checkpoint
from mmlk.ops.dcls.construct import driven_axes
from mmlk.registry import MODELS


def load_backbone(config: str, checkpoint: str | None) -> DCLSConvNeXt:
    """Backbone of a config, with weights of a file of the whole model, of a backbone, or none.

    Raises:
        ValueError: If the config's backbone has no learnable spacings.
    """
    settings = dict(Config.fromfile(config).model.backbone)
    settings.pop('init_cfg', None)
    torch.manual_seed(0)
    backbone = MODELS.build(settings)
    if not isinstance(backbone, DCLSConvNeXt):
        raise ValueError(
            f'plot_dcls: backbone {type(backbone).__name__} of {config} has no '
            'learnable spacings; choose a dcls_convnext config'
        )
    if checkpoint:
        state, _ = read_checkpoint(checkpoint)
        inner = {
            key.removeprefix('backbone.'): value
            for key, value in state.items()
            if key.startswith('backbone.')
        }
        backbone.load_state_dict(inner or state, strict=False)
    return backbone.eval()


def find_layer(backbone: DCLSConvNeXt, name: str) -> torch.nn.Module:
    """Depthwise layer of the block called ``name``, such as ``stages.2.0``.

    Raises:
        ValueError: If there is no such block.
    """
    blocks = {
        f'stages.{i}.{j}': block
        for i, stage in enumerate(backbone.stages)
        for j, block in enumerate(stage)
    }
    if name not in blocks:
        raise ValueError(f'plot_dcls: layer {name!r} is not one of {", ".join(blocks)}')
    return blocks[name].dwconv


@torch.no_grad()
def draw(layer: torch.nn.Module, title: str, channels: int):
    """Figure with the first ``channels`` kernels, and all positions of the layer at the end."""
    kernels = layer.kernel()[:, 0]
    component = driven_axes(layer.version, 2)
    rows, columns = (
        layer.P[component[axis], :, 0] + layer.kernel_size[axis] // 2 for axis in (0, 1)
    )
    shown = min(channels, len(kernels))
    width = min(6, shown + 1)
    height = -(-(shown + 1) // width)
    figure, axes = plt.subplots(
        height, width, figsize=(2.2 * width, 2.3 * height), squeeze=False, layout='constrained'
    )
    panels = axes.flatten()
    for channel, panel in zip(range(shown), panels):
        limit = kernels[channel].abs().max().clamp_min(1e-12).item()
        panel.imshow(kernels[channel], cmap='RdBu_r', vmin=-limit, vmax=limit)
        colours = ['black' if value > 0 else 'none' for value in layer.weight[channel, 0].tolist()]
        panel.scatter(
            columns[channel], rows[channel], s=9, c=colours, edgecolors='black', linewidths=0.6
        )
        panel.set_title(f'channel {channel}', fontsize=8)
    size = layer.kernel_size
    counts = torch.histogramdd(
        torch.stack((rows.flatten(), columns.flatten()), 1).double().cpu(),
        list(size),
        range=[-0.5, size[0] - 0.5, -0.5, size[1] - 0.5],
    ).hist
    panels[shown].imshow(counts, cmap='viridis')
    panels[shown].set_title(f'elements of {len(kernels)} channels', fontsize=8)
    for panel in panels:
        panel.set_xticks([]), panel.set_yticks([])
    for panel in panels[shown + 1 :]:
        panel.axis('off')
    figure.suptitle(
        f'{title}: {layer.version}, {size[0]}x{size[1]} window, {layer.kernel_count} elements',
        fontsize=10,
    )
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config')
    parser.add_argument('out', help='picture to write; its ending chooses the format')
    parser.add_argument('--checkpoint', help='weights of the model or of its backbone')
    parser.add_argument(
        '--layer', default='stages.0.0', help='block whose depthwise layer is drawn'
    )
    parser.add_argument('--channels', type=int, default=11)
    args = parser.parse_args()
    try:
        layer = find_layer(load_backbone(args.config, args.checkpoint), args.layer)
    except (ValueError, RuntimeError, OSError) as error:
        sys.exit(str(error))
    state = Path(args.checkpoint).name if args.checkpoint else 'initial'
    figure = draw(layer, f'{args.layer}.dwconv, {state}', args.channels)
    figure.savefig(args.out, dpi=150)
    print(f'wrote {args.out}')


if __name__ == '__main__':
    main()
