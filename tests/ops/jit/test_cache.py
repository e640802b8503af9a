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


def test_only_files_of_the_user_alone_are_used(monkeypatch, tmp_path, caplog):
    place = tmp_path / 'cache'
    monkeypatch.setenv(cache.ENVIRONMENT, str(place))
    cache.store('a', b'content')
    assert place.stat().st_mode & 0o777 == 0o700
    assert (place / 'a').stat().st_mode & 0o777 == 0o600
    for spoilt, mode in ((place / 'a', 0o622), (place, 0o720), (place, 0o702)):
        before = spoilt.stat().st_mode
        spoilt.chmod(mode)
        assert cache.load('a') is None
        assert f'{spoilt} is not used: it can be written by others' in caplog.text
        spoilt.chmod(before)
        assert cache.load('a') == b'content'
    place.chmod(0o777)
    cache.store('b', b'not in a folder of everybody')
    assert not (place / 'b').exists()


def test_files_of_another_user_are_refused_and_said_once(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv(cache.ENVIRONMENT, str(tmp_path / 'cache'))
    cache.store('a', b'content')
    user = os.getuid()
    monkeypatch.setattr(os, 'getuid', lambda: user + 1)
    assert cache.load('a') is None
    assert cache.load('a') is None
    assert caplog.text.count(f'belongs to user {user}, not to {user + 1}') == 1


def test_leftovers_of_killed_processes_are_removed(monkeypatch, tmp_path):
    monkeypatch.setenv(cache.ENVIRONMENT, str(tmp_path))
    old, new = tmp_path / 'unfinished-old', tmp_path / 'unfinished-new'
    old.touch()
    new.touch()
    os.utime(old, (0, 0))
    cache.store('a', b'content')
    assert not old.exists()
    assert new.exists()


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
