"""Compiled loops that check their accesses: wrong kernels are named, ours never leave their operands."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mmlk import ops
from mmlk.ops import jit
from tests.ops.jit import checked_process as process

pytestmark = pytest.mark.skipif(
    jit.refusal() is not None, reason=f'no compiled loops: {jit.refusal()}'
)


def checked(name, folder):
    """What the function of that name returns in a process whose loops check their accesses."""
    path = folder / 'result.pt'
    run = subprocess.run(
        [sys.executable, '-m', 'tests.ops.jit.checked_process', name, str(path)],
        env={**os.environ, 'MMLK_JIT_CHECK': '1'},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return torch.load(path, weights_only=True)


WRONG = {
    'read behind': "copy reads 64 bytes at byte 68 of operand 'x', which has 128:",
    'read before': "copy reads 64 bytes at byte -64 of operand 'x', which has 128:",
    'write behind': "copy writes 64 bytes at byte 128 of operand 'y', which has 128:",
    'write before': "copy writes 64 bytes at byte -4 of operand 'y', which has 128:",
    'write to none': "copy writes 64 bytes at byte 0 of operand 'y', which has 0:",
    'scratch': 'copy_scratch reads 64 bytes at byte 64 of scratch of tests/ops/jit/checked_process',
    'single floats': "copy_float_by_float writes 4 bytes at byte 12 of operand 'y', which has 12:",
    'further': 'sum_further reads 64 bytes at byte 0 of further operand 1, which has 32:',
    'unknown address': "address of operand 'x' does not come from mmlk.ops.jit.address",
}


@pytest.mark.slow
def test_wrong_kernels_are_named_and_touch_nothing(tmp_path):
    messages, wrote_beyond = checked('wrong_kernels', tmp_path)
    assert messages.keys() == WRONG.keys()
    for name, expected in WRONG.items():
        assert expected in messages[name], name
    assert 'checked_process.py:' in messages['read behind'] and 'count=2' in messages['read behind']
    assert not wrote_beyond


def kernels():
    """Names of all compiled kernels of operators."""
    for path in Path(ops.__file__).parent.glob('*/loops*.py'):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and any(
                isinstance(each, ast.Call) and getattr(each.func, 'id', '') == 'kernel'
                for each in node.decorator_list
            ):
                yield f'{path.parent.name}_{path.stem}_{node.name.strip("_")}'


@pytest.mark.slow
@pytest.mark.parametrize('share', process.SHARES, ids=lambda share: share.__name__)
def test_no_loop_leaves_its_operands_and_results_are_the_same(share, tmp_path):
    results, names = checked(share.__name__, tmp_path)
    wanted = process.compute(share)[0] if results else []
    assert len(results) == len(wanted)
    for index, (mine, theirs) in enumerate(zip(results, wanted)):
        for one, other in zip(mine, theirs, strict=True):
            assert torch.equal(one, other), f'result {index} of {share.__name__}'
    if share is process.every_operator:
        run = {name.rsplit('_', 1)[0] for name in names}
        assert set(kernels()) <= run, f'never run: {set(kernels()) - run}'
