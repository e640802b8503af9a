"""Read every file of the data sets that a config names.

Training stops at the first broken file it meets, which may be hours in; this looks at all of them
and reports all that is wrong.

    mmlk check-data mmlk::upernet_inceptionnext_t_ade20k.py
"""

from __future__ import annotations

import argparse

from mmlk.cli import arguments
from mmlk.cli.config import load_config
from mmlk.data.layout import check_datasets
from mmlk.data.scan import scan_datasets

LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    arguments.add_config(parser)
    arguments.add_cfg_options(parser)


def run(args: argparse.Namespace) -> int:
    """Check; returns 0 if all is well."""
    with arguments.plain_errors(args.program):
        cfg = load_config(args.config, args.cfg_options)
        for line in check_datasets(cfg, LOADERS, contents=True):
            print(line)
    count = 0
    for is_problem, line in scan_datasets(cfg, LOADERS):
        count += is_problem
        print(line, flush=True)
    print(f'{count} problem(s)')
    return int(count > 0)
