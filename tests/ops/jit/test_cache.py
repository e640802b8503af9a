"""Machine code on disk: found again, and never trusted when damaged."""

import os
import subprocess
import sys

import pytest

from mmlk.ops import jit
from mmlk.ops.jit import cache

SCRIPT = """
import sys
import torch
from mmlk.ops.jit import engine
from mmlk.ops.dense.loops import linear
from mmlk.ops.dense.loops_panels import pack

engine._machine()
if sys.argv[1] == 'found':
    def refuse(text):
        raise AssertionError('compiled again')
    engine.llvm.parse_assembly = refuse
x, weight = torch.randn(30, 20), torch.randn(17, 20)
torch.testing.assert_close(linear(x, pack(weight), gelu=True),
                           torch.nn.functional.gelu(x @ weight.t()), rtol=1e-4, atol=1e-4)
"""


def run(folder, argument):
    return subprocess.run(
        [sys.executable, '-c', SCRIPT, argument],
        capture_output=True,
        text=True,
        env={**os.environ, cache.ENVIRONMENT: str(folder)},
    )


@pytest.mark.skipif(jit.refusal() is not None, reason=str(jit.refusal()))
def test_a_second_process_compiles_nothing_unless_a_file_is_damaged(tmp_path):
    first = run(tmp_path, 'new')
    assert first.returncode == 0, first.stderr
    files = sorted(tmp_path.iterdir())
    assert len(files) == 2, 'one for the product, one for the packing, no temporary file'
    second = run(tmp_path, 'found')
    assert second.returncode == 0, second.stderr
    whole = files[0].read_bytes()
    files[0].write_bytes(whole[:-1])
    third = run(tmp_path, 'found')
    assert 'compiled again' in third.stderr
    assert run(tmp_path, 'new').returncode == 0
    assert files[0].read_bytes() == whole


def test_files_come_back_or_count_as_missing(monkeypatch, tmp_path):
    monkeypatch.setenv(cache.ENVIRONMENT, str(tmp_path / 'new' / 'folder'))
    assert cache.load('a') is None
    cache.store('a', b'content')
    assert cache.load('a') == b'content'
    (cache.folder() / 'a').write_bytes(b'too short')
    assert cache.load('a') is None


def test_folders(monkeypatch, tmp_path):
    monkeypatch.setenv(cache.ENVIRONMENT, '')
    assert cache.folder() is None
    cache.store('a', b'content')
    assert cache.load('a') is None
    monkeypatch.delenv(cache.ENVIRONMENT)
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    assert cache.folder() == tmp_path / 'mmlk' / 'jit'
    (tmp_path / 'file').write_text('')
    monkeypatch.setenv(cache.ENVIRONMENT, str(tmp_path / 'file'))
    cache.store('a', b'a folder cannot be made here')
    assert cache.load('a') is None
