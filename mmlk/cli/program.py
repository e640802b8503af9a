"""The program ``mmlk``: its commands, and the scripts of a checkout as doors to single ones.

A command is a module of :mod:`mmlk.commands`: its docstring is the help text, ``add_arguments``
defines the flags, ``run`` does the work and returns the exit status. Program and script build their
parsers from the same module, so a flag is defined once. Only the module of the command that was
typed is imported, so that ``mmlk --help`` costs no more than starting Python.

Exit statuses: 0 all done; 1 an error, told in one message; 2 a wrong command line; 3 done, but
inputs that are listed were left out.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path

import mmlk

COMMANDS = {
    'train': 'Train a model from a config.',
    'test': 'Evaluate a checkpoint on the test data of its config.',
    'predict': 'Predict images, folders or videos, and save pictures, labels and detections.',
    'export': 'Write a model as ONNX or torch.export, verified against the original.',
    'benchmark': 'Time one model in every form in which it runs.',
    'serve': 'Show a web page that predicts the pictures which are dropped on it.',
    'publish': 'Turn a training checkpoint into a small file that describes itself.',
    'convert': (
        'Turn a checkpoint into a file of plain tensors, under the names of this package, timm or its '
        'authors.'
    ),
    'check-data': 'Read every file of the data sets that a config names.',
    'generate-data': (
        'Generate scenes in the layout of ADE20K, of COCO 2017, or of both; '
        'or pictures in class folders.'
    ),
    'flops': "Count a model's parameters and multiply-adds.",
    'models': 'List the configs, the published checkpoints and the networks.',
    'doctor': 'Say what is installed, what is missing, and what to do about it.',
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``mmlk COMMAND ...``; returns the exit status.

    Args:
        argv: Words after the program's name; None takes those of this process.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser(words)
    if '_ARGCOMPLETE' in os.environ:
        import argcomplete

        argcomplete.autocomplete(parser)
    first = next(iter(words), '')
    close = [] if first in COMMANDS else get_close_matches(first, COMMANDS, n=3)
    if close:
        parser.error(f'there is no command {first!r}; closest names: {", ".join(close)}')
    args = parser.parse_args(words)
    return _run(args)


def build_parser(words: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of ``mmlk``, with the flags of those commands that occur in ``words``.

    Under shell completion the words are those of the line that is being typed.
    """
    parser = argparse.ArgumentParser(
        'mmlk',
        description=mmlk.__doc__.split('\n')[0],
        epilog='"mmlk COMMAND --help" explains a command.',
    )
    parser.add_argument('--version', action='version', version=f'mmlk {mmlk.__version__}')
    commands = parser.add_subparsers(dest='command', metavar='COMMAND', required=True)
    typed = {*words, *os.environ.get('COMP_LINE', '').split()}
    for name, summary in COMMANDS.items():
        command = commands.add_parser(
            name, help=summary, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        if name in typed:
            _fill(command, name)
    return parser


def run_tool(name: str, argv: Sequence[str] | None = None) -> int:
    """Run one command under the name of the script that was started; returns the exit status."""
    parser = argparse.ArgumentParser(
        Path(sys.argv[0]).name, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    _fill(parser, name)
    args = parser.parse_args(argv)
    return _run(args)


def _run(args: argparse.Namespace) -> int:
    """Run a parsed command; a reader who wants no more (``mmlk models | head``) ends it quietly."""
    try:
        status = args.run(args)
        sys.stdout.flush()
    except BrokenPipeError:
        # what is still to be written at exit would raise again
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return status


def _fill(parser: argparse.ArgumentParser, name: str) -> None:
    """Give a command's parser its description, flags and function."""
    module = import_module(f'mmlk.commands.{name.replace("-", "_")}')
    parser.description = module.__doc__
    module.add_arguments(parser)
    # its name in messages, "mmlk train" or "train.py", and how it refuses values of its flags
    parser.set_defaults(run=module.run, program=parser.prog, usage_error=parser.error)
