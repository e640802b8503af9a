"""Write a folded backbone or segmentor as a graph of standard operators, and check the file.

    python tools/export.py CONFIG CHECKPOINT --out model.pt2 --shape 512 512

The image size is fixed in the graph. Input is the normalised image, output the maps of the backbone
or the logits of the decode head.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmengine.config import DictAction

import mmlk  # noqa: F401  (resolves mmlk:: paths from here on)
from mmlk.cli import checks
from mmlk.cli.arguments import plain_errors
from mmlk.cli.checkpoint import locate
from mmlk.cli.config import load_config


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='file, or mmlk::name for a config of this package')
    parser.add_argument(
        'checkpoint',
        nargs='?',
        help='checkpoint of the whole model; without one the weights are random',
    )
    parser.add_argument('--out', type=Path, required=True, help='.pt2 (torch.export) or .onnx')
    parser.add_argument('--part', choices=['segmentor', 'backbone'], default='segmentor')
    parser.add_argument('--shape', type=int, nargs=2, default=(512, 512), metavar=('H', 'W'))
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE')
    parser.add_argument(
        '--unsafe-pickle',
        action='store_true',
        help='let the checkpoint run code while it is read; only for trusted files',
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    with plain_errors('export.py'):
        cfg = load_config(args.config, args.cfg_options)
        checkpoint = locate(args.checkpoint) if args.checkpoint else None
        checks.check_packages(cfg)
        checks.check_types(cfg)
        import torch

        from mmlk.cli import export, loading

        loading.read_only_tensors(trust=args.unsafe_pickle)
        module = export.load_part(cfg, args.part, checkpoint)
        image = torch.randn(
            1,
            module.backbone.in_channels if args.part == 'segmentor' else module.in_channels,
            *args.shape,
        )
        error = export.export(module, image, args.out)
    checked = (
        'not run: install onnxruntime to check it'
        if math.isnan(error)
        else (f'output differs from the unfolded model by {error:.1e} of its largest value')
    )
    print(f'{args.out}: {args.part} at {args.shape[0]} x {args.shape[1]}, {checked}')


if __name__ == '__main__':
    main()
