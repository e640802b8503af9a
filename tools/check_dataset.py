#!/usr/bin/env python
"""Read every file of the data sets that a config names, and report all that is wrong.

Training stops at the first broken file it meets, which may be hours in; this looks at all of them.

    python tools/check_dataset.py configs/upernet_inceptionnext_t_ade20k.py
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmengine.config import DictAction

from mmlk.cli.config import load_config
from mmlk.data.layout import DataError, check_datasets
from mmlk.data.scan import scan_datasets

LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help="file, or 'mmlk::name.py' for one of this package")
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='overrides, such as data_root=PATH',
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Check; returns 0 if all is well."""
    args = parse_args(argv)
    try:
        cfg = load_config(args.config, args.cfg_options)
        for line in check_datasets(cfg, LOADERS, contents=True):
            print(line)
    except (DataError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    count = 0
    for is_problem, line in scan_datasets(cfg, LOADERS):
        count += is_problem
        print(line, flush=True)
    print(f'{count} problem(s)')
    return int(count > 0)


if __name__ == '__main__':
    sys.exit(main())
