"""Count a model's parameters and multiply-adds.

Part by part, as papers count them: one per tap of a convolution and per product of a linear layer.
"""

from __future__ import annotations

import argparse

from mmlk.cli import arguments, checks
from mmlk.cli.config import load_config
from mmlk.cli.evaluation import usual_shape


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    arguments.add_config(parser)
    parser.add_argument(
        '--shape',
        type=arguments.positive,
        nargs='+',
        metavar='PIXELS',
        help='height and width, or one number for both (default: 512 512; detection: 800 1280; '
        "classification: the crop of the config's test)",
    )
    parser.add_argument('--deploy', action='store_true', help='count the folded backbone')
    arguments.add_cfg_options(parser)


def run(args: argparse.Namespace) -> int:
    """Count and print; returns the exit status."""
    with arguments.plain_errors(args.program):
        if args.shape and len(args.shape) > 2:
            args.usage_error(f'--shape takes one or two numbers, not {len(args.shape)}')
        cfg = load_config(args.config, args.cfg_options)
        checks.check_packages(cfg)
        checks.check_types(cfg)
        shape = tuple(args.shape or usual_shape(cfg))
        shape = shape if len(shape) == 2 else shape * 2
        from mmlk.cli import complexity

        parts = complexity.measure(complexity.build_model(cfg, args.deploy), shape)
    print(f'{args.config} at {shape[0]} x {shape[1]}')
    print(complexity.table(parts))
    return 0
