"""The command that converts checkpoints, as a function."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / 'tools' / 'convert_checkpoint.py'


@pytest.fixture(scope='session')
def convert():
    spec = importlib.util.spec_from_file_location('convert_checkpoint', SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda *args: module.main([str(arg) for arg in args])
