"""Draw effective receptive fields side by side, and measure the area that holds most of each.

    python tools/analyze_erf.py --pretrained --images photos --out erf.png
    python tools/analyze_erf.py slak_tiny slak_tiny=work_dirs/mine/epoch_300.pth --images photos

A field is the gradient of the centre of the last feature map with respect to the image, as in the
papers of RepLKNet and SLaK: positive part, summed over colours, mean over images, log10(score + 1).
An area is that of the smallest centred square which holds more than t of the scores, as a share of the
image's. The papers use 50 images of ImageNet at 1024x1024. Without weights the fields are those of
untrained networks, which layer scales of 1e-6 keep small.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import numpy as np
import torch
from torch import Tensor

import mmlk
from mmlk.analysis.erf import THRESHOLDS, Area, areas, contribution_scores, logarithmic
from mmlk.cli import arguments
from mmlk.cli.files import complete
from mmlk.inference.sources import Frames

MODELS = ('inceptionnext_tiny', 'slak_tiny', 'dcls_convnext_tiny', 'recnext_m3')
SQUARES = ('tab:red', 'tab:orange', 'tab:blue', 'black')


def build(spec: str, pretrained: bool) -> torch.nn.Module:
    """Feature extractor of ``NAME`` or ``NAME=FILE``, in eval mode, weights without gradient."""
    name, _, file = spec.partition('=')
    torch.manual_seed(0)
    model = mmlk.create_model(name, file or pretrained, features_only=True, out_indices=(-1,))
    return model.eval().requires_grad_(False)


def pictures(source: str, count: int, size: int, settings: dict) -> Iterator[Tensor]:
    """The first pictures of a folder, resized and normalised, as batches of one.

    Raises:
        ValueError: If one is broken, or the folder holds none.
    """
    mean, std = (np.float32(settings[key]) for key in ('mean', 'std'))
    for frame in islice(Frames(source), count):
        if frame.image is None:
            raise ValueError(frame.problem)
        resized = cv2.resize(frame.image, (size, size), interpolation=cv2.INTER_CUBIC)[..., ::-1]
        yield torch.from_numpy((resized / np.float32(255) - mean) / std).permute(2, 0, 1)[None]


def noise(count: int, size: int) -> Iterator[Tensor]:
    """Images of independent normal values, the same for every model."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        yield torch.randn(1, 3, size, size, generator=generator)


def draw(fields: dict[str, tuple[Tensor, list[Area]]]):
    """Figure with a panel per model: its field, and a square per threshold."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    figure = Figure(figsize=(3.3 * len(fields), 3.9), layout='constrained')
    panels = figure.subplots(1, len(fields), squeeze=False)[0]
    for panel, (name, (field, found)) in zip(panels, fields.items()):
        panel.imshow(field, cmap='Greens', vmin=0, vmax=1)
        height, width = field.shape
        for area, colour in zip(found, SQUARES * len(found)):
            corner = (width // 2 - area.side / 2, height // 2 - area.side / 2)
            label = f'{area.threshold:.0%}: {area.ratio:.1%}'
            panel.add_patch(
                Rectangle(corner, area.side, area.side, fill=False, color=colour, label=label)
            )
        panel.set_title(name, fontsize=9)
        panel.set_xticks([]), panel.set_yticks([])
        panel.legend(loc='upper center', bbox_to_anchor=(0.5, -0.02), ncols=2, fontsize=8)
    return figure


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'models',
        nargs='*',
        default=MODELS,
        metavar='NAME[=FILE]',
        help=f'networks of "mmlk models --networks", with a checkpoint (default: {" ".join(MODELS)})',
    )
    parser.add_argument('--pretrained', action='store_true', help='load published weights')
    parser.add_argument('--images', help='folder, file or pattern (default: random images)')
    parser.add_argument('--num-images', type=int, default=50, help='(default: %(default)s)')
    parser.add_argument(
        '--size', type=int, default=1024, help='side in pixels (default: %(default)s)'
    )
    parser.add_argument(
        '--thresholds',
        nargs='+',
        type=float,
        default=THRESHOLDS,
        metavar='T',
        help='shares of the scores, 0 to 1 (default: those of the papers)',
    )
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--out', type=Path, default=Path('erf.png'), help='(default: %(default)s)')
    parser.add_argument('--json', type=Path, help='file for the figures')
    args = parser.parse_args(argv)
    for name in ('num_images', 'size'):
        if getattr(args, name) < 1:
            parser.error(f'--{name.replace("_", "-")} {getattr(args, name)} is below 1')
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    fields = {}
    with arguments.plain_errors('analyze_erf.py'):
        for spec in args.models:
            model = build(spec, args.pretrained).to(args.device)
            images = (
                pictures(args.images, args.num_images, args.size, model.default_cfg)
                if args.images
                else noise(args.num_images, args.size)
            )
            scores = contribution_scores(model, (image.to(args.device) for image in images))
            field = logarithmic(scores.cpu())
            fields[spec] = field, areas(field, args.thresholds)
            told = ', '.join(
                f't = {area.threshold:.0%}: {area.ratio:.1%} ({area.side} px)'
                for area in fields[spec][1]
            )
            print(f'{spec}: {told}', flush=True)
        with complete(args.out) as partial:
            draw(fields).savefig(partial, dpi=120)
        if args.json:
            figures = {
                name: [area._asdict() for area in found] for name, (_, found) in fields.items()
            }
            with complete(args.json) as partial:
                partial.write_text(json.dumps(figures, indent=2) + '\n', encoding='utf-8')
    print(f'wrote {args.out}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
