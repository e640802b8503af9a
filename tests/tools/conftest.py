"""One data set for all tool tests, and a fresh folder with a config in it for each."""

import pytest
import torch

from tests.tools.workbench import write_config, write_dataset


@pytest.fixture(scope='session')
def data_root(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp('ade'))


@pytest.fixture
def config(tmp_path, data_root):
    return write_config(tmp_path, data_root)


@pytest.fixture
def one_thread():
    """One thread, as the child processes have, so that sums are formed in the same order."""
    torch.set_num_threads(1)
