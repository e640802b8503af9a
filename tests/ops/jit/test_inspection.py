"""What the compiler writes for people who look into it."""

import os
import subprocess
import sys

import pytest

from mmlk.ops import jit
from mmlk.ops.jit import inspection

PROGRAM = """
import torch
from mmlk.ops.depthwise.loops import forward
x = torch.randn(1, 9, 9, 16).permute(0, 3, 1, 2)
forward(x, torch.randn(16, 1, 5, 5), None)
"""

pytestmark = pytest.mark.skipif(
    jit.refusal() is not None, reason=f'no compiled loops: {jit.refusal()}'
)


def run(folder, **environment):
    return subprocess.run(
        [sys.executable, '-c', PROGRAM],
        env={**os.environ, 'MMLK_JIT_CACHE': str(folder / 'cache'), **environment},
        capture_output=True,
        text=True,
    )


def test_llvm_code_and_assembly_are_written(tmp_path):
    for _ in range(2):  # kept machine code does not stand in the way
        done = run(tmp_path, MMLK_JIT_DUMP=str(tmp_path / 'dump'))
        assert done.returncode == 0, done.stderr
        made = sorted(tmp_path.glob('dump/depthwise_loops_forward_*'))
        assert [each.suffix for each in made] == ['.ll', '.s']
        assert '<16 x float>' in made[0].read_text() and made[0].stem in made[1].read_text()
        for each in made:
            each.unlink()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / 'file').touch()
    done = run(tmp_path, MMLK_JIT_DUMP=str(tmp_path / 'file' / 'dump'))
    assert done.returncode == 1
    assert f'MMLK_JIT_DUMP={tmp_path}/file/dump: the folder cannot be made' in done.stderr


def test_names_for_perf(tmp_path, monkeypatch):
    lines = []

    class Written:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        write = staticmethod(lines.append)

    monkeypatch.setattr('builtins.open', lambda path, mode: lines.append(str(path)) or Written())
    inspection.name_for_perf('loop', 4096, 32)
    assert lines == []
    monkeypatch.setenv('MMLK_JIT_PERF', '1')
    inspection.name_for_perf('loop', 4096, 32)
    assert lines == [f'/tmp/perf-{os.getpid()}.map', '1000 20 loop\n']
