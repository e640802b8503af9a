"""The command that converts checkpoints, as a function."""

import sys

import pytest

from mmlk.cli import program


@pytest.fixture(scope='session')
def convert():
    """Runs ``mmlk convert`` and returns its exit status, with the message of an error on stderr."""

    def run(*words):
        try:
            return program.main(['convert', *map(str, words)])
        except SystemExit as stop:
            if isinstance(stop.code, str):
                print(stop.code, file=sys.stderr)
                return 1
            return stop.code

    return run
