"""Parameters and multiply-adds of a config's model, part by part, as papers count them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmengine.config import DictAction

import mmlk  # noqa: F401  (resolves mmlk:: paths from here on)
from mmlk.cli import checks
from mmlk.cli.arguments import plain_errors
from mmlk.cli.config import load_config

DEFAULT_SHAPE = {'mmdet': (800, 1280)}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='file, or mmlk::name for a config of this package')
    parser.add_argument(
        '--shape',
        type=int,
        nargs='+',
        metavar='PIXELS',
        help='height and width, or one number for both (default: 512 512; detection: 800 1280)',
    )
    parser.add_argument('--deploy', action='store_true', help='count the folded backbone')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE')
    args = parser.parse_args()
    if args.shape and len(args.shape) > 2:
        parser.error(f'--shape takes one or two numbers, not {len(args.shape)}')
    return args


def main() -> None:
    args = parse_args()
    with plain_errors('get_flops.py'):
        cfg = load_config(args.config, args.cfg_options)
        checks.check_packages(cfg)
        checks.check_types(cfg)
        shape = tuple(args.shape or DEFAULT_SHAPE.get(cfg.get('default_scope'), (512, 512)))
        shape = shape if len(shape) == 2 else shape * 2
        from mmlk.cli import complexity

        parts = complexity.measure(complexity.build_model(cfg, args.deploy), shape)
    print(f'{args.config} at {shape[0]} x {shape[1]}')
    print(complexity.table(parts))


if __name__ == '__main__':
    main()
