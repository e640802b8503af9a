"""Steps of varying sizes leave memory and open files as they were."""

import os
import subprocess
import sys

import pytest

from tests.networks import many_steps


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != 'linux', reason='memory of the process is read from /proc')
def test_many_steps_of_varying_sizes_stay_in_bounds():
    """``MMLK_TEST_STEPS`` takes another number of steps."""
    steps = os.environ.get('MMLK_TEST_STEPS', '28')
    run = subprocess.run(
        [sys.executable, '-m', many_steps.__name__, '--steps', steps],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count('open files') == 4
