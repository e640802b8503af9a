"""The interpreter's process, and what tests of compiled code need.

Triton decides at its import whether kernels are interpreted, so the numerical tests send functions
to one child process per test file in which TRITON_INTERPRET is set; the parent, which compiles,
stays as it is. In the child every `torch.empty*` is full of NaN: an output element that a kernel
forgets fails the comparison.
"""

import importlib.util
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

import pytest

if importlib.util.find_spec('triton') is None:
    collect_ignore_glob = ['*/test_triton*.py', 'triton/test_*.py']


@pytest.fixture(scope='module')
def interpreted():
    """Calls a function of an importable module in the interpreter's process: ``(function, *args)``.

    Arguments and the result must be picklable; an assertion that fails there fails here.
    """
    os.environ['TRITON_INTERPRET'] = '1'
    from tests.ops.triton.interpreter import prepare

    pool = ProcessPoolExecutor(1, multiprocessing.get_context('spawn'), prepare)
    try:
        pool.submit(os.getpid).result()  # the child has copied the environment
    finally:
        del os.environ['TRITON_INTERPRET']
    yield lambda function, *args: pool.submit(function, *args).result()
    pool.shutdown()
