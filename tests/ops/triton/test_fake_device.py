"""Every case of the GPU checks on a device that is not there: launches, and what kernels need."""

import subprocess
import sys

import pytest
import triton

from mmlk.ops.triton import compat
from tests.ops.triton import device_cases, fake_device

NEEDS_DEVICE = pytest.mark.skipif(
    fake_device.refusal() is not None, reason=str(fake_device.refusal())
)
ARCHS = sorted(fake_device.SHARED_LIMIT)
# Every operator; nearly all kernels are those that test_machine_code.py compiles as well.
LAUNCHED = (
    'Inception 64x96x56x56 bfloat16 channels_last',
    '7x7 64x96x56x56 bfloat16 contiguous',
    '7x7 64x96x56x56 bfloat16 channels_last',
    'DCLS 17x17, 34 elements, v1 64x96x56x56 bfloat16 contiguous',
    'SLaK 51x5 + 5x51 + 5x5, one operator 64x96x56x56 bfloat16 contiguous',
    'RecConv 5x5, 4 levels 64x64x56x56 bfloat16 contiguous',
)


def run(tmp_path, arch, *options):
    """Rows that ``device_cases`` writes in a process of its own, which fails beyond a limit."""
    out = tmp_path / 'table.json'
    command = [sys.executable, '-m', device_cases.__name__, '--arch', str(arch), '--out', out]
    subprocess.run([*command, *options], cwd=device_cases.ROOT, check=True, timeout=900)
    return device_cases.read(out)


@pytest.mark.parametrize('arch', ARCHS)
def test_the_table_has_every_timed_case_within_the_limits(arch):
    table = device_cases.read(device_cases.table_of(arch))
    assert set(table) == {each.name for each in device_cases.points()}
    for name, row in table.items():
        assert all(len(each) == 6 for given in row.values() for each in given), name
        assert not device_cases.beyond_limits(row, arch), name


def test_launches_beyond_a_limit_are_named():
    fine = ['k', [10, 1, 1], 1024, 1000, 64, 0]
    wrong = {
        1: [1, 70_000, 1],
        2: 2048,
        3: 200_000,
        4: 72,
        5: 8,
    }
    assert not device_cases.beyond_limits({'forward': [fine]}, 80)
    for index, value in wrong.items():
        launch = [*fine[:index], value, *fine[index + 1 :]]
        (text,) = device_cases.beyond_limits({'forward': [launch]}, 80)[:1]
        assert text.startswith('forward: k needs ')
    assert device_cases.beyond_limits({'forward': [['k', [2**20, 2**12, 1], 32]]}, 80)


@pytest.mark.slow
@NEEDS_DEVICE
@pytest.mark.parametrize('arch', ARCHS)
def test_launched_cases_are_those_of_the_table(tmp_path, arch):
    found = run(tmp_path, arch, '--names', *LAUNCHED)
    table = device_cases.read(device_cases.table_of(arch))
    want = {name: table[name] for name in LAUNCHED}
    if triton.__version__ != compat.CHECKED:  # by which the table was made
        found, want = ({name: plain(row) for name, row in each.items()} for each in (found, want))
    assert found == want


def plain(row):
    """A row without what the compiler decides."""
    return {which: [each[:3] for each in given] for which, given in row.items()}


@pytest.mark.slow
@NEEDS_DEVICE
def test_every_case_launches_within_the_limits_and_as_the_table_says(tmp_path):
    found = run(tmp_path, ARCHS[0], '--parity', '--record')
    assert set(found) == {each.name for each in device_cases.points(parity=True)}
    for arch in ARCHS:
        for name, row in device_cases.read(device_cases.table_of(arch)).items():
            assert found[name] == plain(row), name
