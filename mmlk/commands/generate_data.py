"""Generate scenes in the layout of ADE20K, of COCO 2017, or of both; or pictures in class folders.

The same parameters give the same files. Training and validation never share a picture.

    mmlk generate-data data/mini --format both --train 400 --val 100 --seed 0
    mmlk generate-data data/mini_classes --format classes --train 1600 --val 400
"""

from __future__ import annotations

import argparse
import re
import signal
import sys
import time
from pathlib import Path

from mmlk.data import folder, pictures
from mmlk.data.scene import MIN_SIDE, VERSION
from mmlk.data.writers import CLASS_FOLDERS, FORMATS, Parameters, dataset_files


def parse_size(text: str) -> tuple[int, int]:
    """'HxW' -> (height, width)."""
    match = re.fullmatch(r'(\d+)x(\d+)', text)
    if match is None or min(map(int, match.groups())) < pictures.MIN_SIDE:
        raise argparse.ArgumentTypeError(
            f'{text!r} is no size; write HEIGHTxWIDTH, each at least {pictures.MIN_SIDE}, as in 200x288'
        )
    return int(match[1]), int(match[2])


def parse_count(text: str) -> int:
    """A whole number that is not negative."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f'{text!r} is no whole number >= 0')
    return int(text)


def parse_positive(text: str) -> int:
    """A whole number above 0."""
    if parse_count(text) == 0:
        raise argparse.ArgumentTypeError(f'{text!r} is no whole number >= 1')
    return int(text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    parser.add_argument('out', type=Path, help='data root to create')
    parser.add_argument('--format', choices=(*FORMATS, 'both', CLASS_FOLDERS), default='both')
    parser.add_argument('--train', type=parse_positive, default=400, help='training pictures')
    parser.add_argument('--val', type=parse_positive, default=100, help='validation pictures')
    parser.add_argument(
        '--size',
        type=parse_size,
        metavar='HxW',
        help='nominal size in pixels, from which every picture differs by up to 12 %% '
        '(default: 200x288, class folders 72x72)',
    )
    parser.add_argument('--seed', type=parse_count, default=0)
    parser.add_argument('--jobs', type=parse_positive, default=1, help='processes that paint')
    parser.add_argument(
        '--overwrite',
        action='store_true',
        help='replace a set generated with other parameters; never touches files of other origin',
    )


def run(args: argparse.Namespace) -> int:
    """Generate, or say why not; returns the exit status."""
    out = args.out.expanduser().resolve()
    formats = FORMATS if args.format == 'both' else (args.format,)
    single = args.format == CLASS_FOLDERS
    size = args.size or ((72, 72) if single else (200, 288))
    if min(size) < MIN_SIDE and not single:
        print(f'{args.program}: --size: a side of scenes is at least {MIN_SIDE}', file=sys.stderr)
        return 1
    parameters = Parameters(formats, args.train, args.val, *size, args.seed)
    try:
        if folder.is_up_to_date(out, VERSION, parameters.as_dict()):
            print(f'{out} is up to date')
            return 0
        folder.check_replaceable(out, args.overwrite)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    start = time.perf_counter()
    files = dataset_files(parameters, args.jobs)
    try:
        written = folder.write_folder(out, files, VERSION, parameters.as_dict())
    except OSError as error:
        print(f'{args.program}: {out} cannot be written: {error}', file=sys.stderr)
        return 1
    print(
        f'{out}: {args.train} training and {args.val} validation pictures, {written} files, '
        f'{time.perf_counter() - start:.1f} s'
    )
    return 0
