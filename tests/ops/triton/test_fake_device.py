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
STACK = {}
"""Bytes of stack that a thread of a kernel may have; the others have none."""

# One case of every operator, with kernels that compile quickly.
LAUNCHED = ()


def run(tmp_path, arch, *options):
    """Table that ``device_cases`` writes in a process of its own."""
    out = tmp_path / 'table.json'
    command = [sys.executable, '-m', device_cases.__name__, '--arch', str(arch), '--out', out]
    subprocess.run([*command, *options], cwd=device_cases.ROOT, check=True, timeout=600)
    return device_cases.read(out)


def launches(table):
    for name, row in table.items():
        for which, found in row.items():
            for launch in found:
                yield f'{name}, {which}, {launch[0]}', *launch


def check_limits(table, arch):
    """What a device of ``sm_<arch>`` can launch, without registers in memory."""
    for where, kernel, grid, threads, shared, registers, stack in launches(table):
        assert 1 <= grid[0] < 2**31 and 1 <= min(grid[1:]) <= max(grid[1:]) <= 65_535, where
        assert grid[0] * grid[1] * grid[2] < 2**31, where  # Triton's launchers count in 32 bits
        assert threads <= 1024 and shared <= fake_device.SHARED_LIMIT[arch], where
        assert -(-registers // 8) * 8 * threads <= 65_536, where  # allocated by eights
        assert stack <= STACK.get(kernel, 0), where


@pytest.mark.parametrize('arch', ARCHS)
def test_the_table_has_every_case_within_the_limits(arch):
    table = device_cases.read(device_cases.table_of(arch))
    assert set(table) == {each.name for each in device_cases.points()}
    check_limits(table, arch)


@pytest.mark.slow
@NEEDS_DEVICE
@pytest.mark.parametrize('arch', ARCHS)
def test_launched_cases_are_within_the_limits_and_those_of_the_table(tmp_path, arch):
    found = run(tmp_path, arch, '--names', *LAUNCHED)
    assert set(found) == set(LAUNCHED)
    check_limits(found, arch)
    if triton.__version__ == compat.CHECKED:  # by which the table was made
        table = device_cases.read(device_cases.table_of(arch))
        assert found == {name: table[name] for name in LAUNCHED}


@pytest.mark.slow
@NEEDS_DEVICE
def test_all_cases_launch_what_the_table_says(tmp_path):
    found = run(tmp_path, ARCHS[0], '--record')
    for arch in ARCHS:
        table = device_cases.read(device_cases.table_of(arch))
        for name, row in table.items():
            assert found[name] == {
                which: [each[:3] for each in given] for which, given in row.items()
            }, name
