"""The whole GPU checks script on a device that is not there, killed at a random second."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.ops.triton import fake_device
from tests.tools.test_gpu_checks import run_gpu_checks

SCRIPT = Path(__file__).with_name('gpu_dry_run.py')
LONGEST = 16.0  # seconds that it may live after its first row; its budget is a little less


def rows_of(folder):
    """Rows of the files in ``folder`` and the sections that are done, as a reader finds them."""
    found, done = [], []
    for path in folder.glob('gpu_*'):
        if path.suffix == '.json':
            done.append(path.stem.removeprefix('gpu_'))
            found += json.loads(path.read_text())['rows']
        else:
            about, *rows = map(json.loads, path.read_text().splitlines())
            assert about['about']['device'] == 'fake device'
            found += rows
    return found, done


@pytest.mark.slow
@pytest.mark.skipif(fake_device.refusal() is not None, reason=str(fake_device.refusal()))
def test_a_run_that_is_killed_at_a_random_second_keeps_every_row(tmp_path):
    out = tmp_path / 'out'
    process = subprocess.Popen(
        [sys.executable, SCRIPT, '--out', out, '--jobs', '1', '--budget', str(LONGEST - 4)],
        env={**os.environ, 'MMLK_TEST_FAKE_DEVICE': str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    written = []
    for line in process.stdout:  # the first row, whenever it comes
        if line.startswith('written '):
            written.append(line)
            break
    second = random.SystemRandom().uniform(0, LONGEST)
    time.sleep(second)
    process.kill()
    rest, _ = process.communicate()
    written += [line for line in rest.splitlines() if line.startswith('written ')]
    told = [row for line in written for row in json.loads(line.removeprefix('written '))]
    found, done = rows_of(out)
    assert told, f'no row came before the kill after {second:.1f} s'
    assert all(row in found for row in told), f'a row is missing after {second:.1f} s'
    assert done == [] or set(done) == set(list(run_gpu_checks.SECTIONS)[: len(done)])
