"""Turn a training checkpoint into a small file that describes itself.

    mmlk publish work_dirs/my_config/last_checkpoint --metric mIoU=47.6 --licence Apache-2.0

The file holds the weights as plain tensors, the class names and colours, the config, the accuracy
that you state, versions and licence, and ends in the first digits of its own SHA-256. It needs no
other file: mmlk predict FILE SOURCE, MMSegInferencer(weights=FILE) and DetInferencer(weights=FILE)
build the model from it and name the right classes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mmlk.cli import arguments
from mmlk.cli.checkpoint import locate
from mmlk.cli.files import check_writable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    parser.add_argument('checkpoint', help='file, or WORK_DIR/last_checkpoint')
    config = parser.add_argument('--config', help='config, where the checkpoint holds none')
    config.completer = arguments.complete_config
    parser.add_argument('--out', type=Path, default=Path('.'), help='folder (default: this one)')
    parser.add_argument('--name', help='name of the file (default: that of the config)')
    parser.add_argument(
        '--metric',
        nargs='+',
        type=parse_metric,
        default=[],
        metavar='NAME=VALUE',
        help='measured accuracy, as in mIoU=47.6',
    )
    parser.add_argument('--licence', default='', help='SPDX identifier, as in Apache-2.0')
    arguments.add_unsafe_pickle(parser)


def parse_metric(text: str) -> tuple[str, float]:
    """'mIoU=47.6' -> ('mIoU', 47.6)."""
    name, _, value = text.partition('=')
    try:
        return name, float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(f'{text!r} is not NAME=NUMBER') from None


def run(args: argparse.Namespace) -> int:
    """Publish; returns the exit status."""
    with arguments.plain_errors(args.program):
        check_writable(args.out)
        checkpoint = locate(args.checkpoint)
        from mmlk.publish import publish

        file = publish(
            checkpoint,
            args.out,
            config=args.config,
            name=args.name,
            metrics=dict(args.metric),
            licence=args.licence,
            unsafe_pickle=args.unsafe_pickle,
        )
    print(f'{file}: {file.stat().st_size / 1e6:.1f} MB')
    return 0
