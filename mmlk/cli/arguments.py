"""Options that training and testing share, and how a tool reports bad input."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from mmengine.config import DictAction


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that training and testing share, spelt as in MMSegmentation and MMDetection."""
    parser.add_argument(
        '--work-dir',
        help='folder of logs, checkpoints and metrics (default: work_dirs/<config name>)',
    )
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='overrides: a.b=1, list indices as in pipeline.0.scale=(64,64), data_root=PATH for '
        'every dataset; unknown keys are refused unless written +a.b=1',
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument(
        '--local_rank', '--local-rank', type=int, default=0, help='set by torch.distributed.launch'
    )
    parser.add_argument(
        '--unsafe-pickle',
        action='store_true',
        help='let the file of --resume or of a test run code while it is read; '
        'only for files you trust',
    )


def export_local_rank(local_rank: int) -> None:
    """Pass the launcher's flag on to MMEngine, which reads the environment."""
    os.environ.setdefault('LOCAL_RANK', str(local_rank))


@contextmanager
def plain_errors(tool: str) -> Iterator[None]:
    """End the program with the message alone where preparing a run fails on the user's input."""
    try:
        yield
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        sys.exit(f'{tool}: error: {error}')
