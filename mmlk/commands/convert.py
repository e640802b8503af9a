"""Turn a checkpoint into a file of plain tensors, under the names of this package, timm or its authors.

    mmlk convert mmlk://recnext_m3_distill_300e recnext_m3.safetensors
    mmlk convert work_dirs/my_config/epoch_300.pth author.pth --to authors

The source is a path, a URL, mmlk://NAME (--list prints the names) or hf-hub:OWNER/NAME. The file ends
in .safetensors, or is one of torch that reads with weights_only=True. A classifier becomes a
headless backbone; a whole segmentor or detector stays whole, with the backbone's part renamed, unless
--prefix backbone asks for the backbone alone. --to timm and --to authors go the other way: a
classifier or a backbone, of this package or published, gets the names under which timm or its
authors' code loads it, with its head. Family and variant are read from the file. The report says
what matched; nothing is written unless the trunk is covered.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mmlk.checkpoints import keymaps, zoo
from mmlk.cli import arguments

FORMS = ('timm', 'authors')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    parser.add_argument('source', nargs='?', help='path, URL, mmlk://NAME or hf-hub:OWNER/NAME')
    parser.add_argument('output', nargs='?', type=Path, help='file to write; must not exist')
    parser.add_argument(
        '--family',
        choices=sorted(keymaps.FAMILIES),
        help='family of the backbone, if the file does not show it',
    )
    parser.add_argument('--arch', help='variant of the backbone, if the file does not show it')
    parser.add_argument(
        '--prefix', default='', help="take only keys that start with this, such as 'backbone'"
    )
    parser.add_argument('--prefer', help='which of several state dicts, such as model_ema')
    parser.add_argument(
        '--to',
        choices=FORMS,
        help='write a classifier or backbone as timm (InceptionNeXt only) or its authors name it',
    )
    parser.add_argument('--sha256', help='expected checksum of the source, or its beginning')
    arguments.add_unsafe_pickle(parser)
    parser.add_argument('--list', action='store_true', help='print the known checkpoints and exit')


def run(args: argparse.Namespace) -> int:
    """Convert, or print the list; returns the exit status."""
    if args.list:
        for entry in zoo.ENTRIES.values():
            note = f'  [{entry.note}]' if entry.note else ''
            print(f'{zoo.SCHEME}{entry.name}  {entry.family}  {entry.data}{note}')
        return 0
    if args.output is None:
        args.usage_error('source and output are required')
    with arguments.plain_errors(args.program):
        from mmlk.cli.conversion import convert

        convert(args)
    return 0
