"""Options that training and testing share, and how a tool reports bad input."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from mmlk.configs import config_root


def add_config(parser: argparse.ArgumentParser) -> None:
    """The config that most commands start from."""
    argument = parser.add_argument(
        'config', help='file, or (mmlk::)name for a config of this package'
    )
    argument.completer = complete_config


def complete_config(prefix: str, **_: object) -> list[str]:
    """Configs of this package and files, for the shell's completion."""
    from argcomplete.completers import FilesCompleter

    packaged = (f'mmlk::{path.stem}' for path in config_root().glob('*.py'))
    return [*FilesCompleter(['.py'])(prefix), *(n for n in packaged if n.startswith(prefix))]


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    """Overrides of the config, spelt as in MMSegmentation and MMDetection."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=_KeyValue,
        metavar='KEY=VALUE',
        help='overrides: a.b=1, list indices as in pipeline.0.scale=(64,64), data_root=PATH for '
        'every dataset; unknown keys are refused unless written +a.b=1',
    )


def positive(text: str) -> int:
    """A flag's value that counts something: a whole number from 1.

    Raises:
        argparse.ArgumentTypeError: For anything else.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text!r} is not a whole number of at least 1')
    return int(text)


def share(text: str) -> float:
    """A flag's value within 0 to 1.

    Raises:
        argparse.ArgumentTypeError: For anything else.
    """
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f'{text!r} is not a number from 0 to 1')
    return value


def add_no_fold(parser: argparse.ArgumentParser) -> None:
    """Leave a network as it was trained."""
    parser.add_argument(
        '--no-fold',
        action='store_true',
        help='compute with the network as it was trained; folded, it gives the same up to rounding, '
        'faster',
    )


def add_unsafe_pickle(parser: argparse.ArgumentParser) -> None:
    """Permission to run code that a checkpoint holds."""
    parser.add_argument(
        '--unsafe-pickle',
        action='store_true',
        help='let the checkpoint run code while it is read; only for files you trust',
    )


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that training and testing share, spelt as in MMSegmentation and MMDetection."""
    parser.add_argument(
        '--work-dir',
        help='folder of logs, checkpoints and metrics (default: work_dirs/<config name>)',
    )
    add_cfg_options(parser)
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none')
    parser.add_argument(
        '--local_rank', '--local-rank', type=int, default=0, help='set by torch.distributed.launch'
    )
    add_unsafe_pickle(parser)


class _KeyValue(argparse.Action):
    """MMEngine's parser of ``KEY=VALUE``, imported where the option is met."""

    def __call__(self, parser, namespace, values, option_string=None):
        from mmengine.config import DictAction

        DictAction([option_string], self.dest, nargs='+')(parser, namespace, values, option_string)


def export_local_rank(local_rank: int) -> None:
    """Pass the launcher's flag on to MMEngine, which reads the environment."""
    os.environ.setdefault('LOCAL_RANK', str(local_rank))


@contextmanager
def plain_errors(
    tool: str,
    kinds: tuple[type[Exception], ...] = (ValueError, OSError, RuntimeError, ImportError),
) -> Iterator[None]:
    """End the program with the message alone where the user's input is at fault.

    Args:
        tool: Name of the program in the message.
        kinds: Exceptions that stand for such faults. While a run is prepared, all that our checks and
            libraries raise; while it runs, those alone that say so themselves.
    """
    try:
        yield
    except kinds as error:
        sys.exit(f'{tool}: error: {error}')
