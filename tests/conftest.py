"""Fixtures of the whole suite: fixed seeds, strict float32, two threads."""

import os

os.environ.setdefault('CUDA_DEVICE_ORDER', 'PCI_BUS_ID')

import pytest
import torch

import mmlk  # noqa: F401  (before mmdet, which looks for MMCV's operators when it is imported)


@pytest.fixture(autouse=True)
def _reproducible():
    torch.manual_seed(int(os.environ.get('MMLK_TEST_SEED', '0')))
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    yield
