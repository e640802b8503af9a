"""Networks whose first call in a process comes from several threads at once."""

import os
import subprocess
import sys

import pytest

from mmlk.ops import jit
from tests.networks import first_calls


@pytest.mark.slow
@pytest.mark.skipif(jit.refusal() is not None, reason=f'no compiled loops: {jit.refusal()}')
def test_first_calls_from_several_threads():
    """``MMLK_TEST_PROCESSES`` takes another number of processes."""
    processes = os.environ.get('MMLK_TEST_PROCESSES', str(first_calls.SHARE))
    run = subprocess.run(
        [sys.executable, '-m', first_calls.__name__, '--processes', processes],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert f'{processes} processes, 0 failed' in run.stdout
