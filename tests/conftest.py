"""What holds for every test: its global state is its own, its seed is fixed, float32 is strict.

Whatever importing a test file, a fixture of a module or a test does to the kinds of state that
tests/isolation.py names is undone, so the order of tests is free; pytest-randomly makes it random.
"""

import os

os.environ.setdefault('CUDA_DEVICE_ORDER', 'PCI_BUS_ID')

import random

import numpy as np
import pytest
import torch

import mmlk  # noqa: F401  (before mmdet, which looks for MMCV's operators when it is imported)
from tests.isolation import isolated

LONGEST = ('tools', 'detection', 'commands', 'classification')


def pytest_configure(config):
    config.option.randomly_reset_seed = False  # random is the order alone


def pytest_collection_modifyitems(config, items):
    """In the order of the source, folders with whole runs begin, so that workers end together."""
    if not config.pluginmanager.hasplugin('randomly'):
        items.sort(key=lambda item: item.path.parent.name not in LONGEST)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    if not isinstance(collector, pytest.Module):
        return (yield)
    with isolated():
        return (yield)


@pytest.fixture(scope='module', autouse=True)
def _isolated_module():
    with isolated():
        yield


@pytest.fixture(autouse=True)
def _isolated_test():
    with isolated():
        seed = int(os.environ.get('MMLK_TEST_SEED', '0'))
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        yield
