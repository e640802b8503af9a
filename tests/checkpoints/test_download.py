"""Downloads from a server that breaks off, changes, refuses or lies."""

import hashlib
import shutil
from types import SimpleNamespace

import pytest

from mmlk.checkpoints import download as module
from mmlk.checkpoints.download import download
from tests.file_server import serving

CONTENT = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(module, '_WAITS', (0.0, 0.0))
    with serving(CONTENT) as running:
        yield running


def left(folder):
    return sorted(path.name for path in folder.iterdir())


def test_it_goes_on_where_the_connection_broke(server, tmp_path):
    server.breaks = [300_000, 200_000]
    path = download(server.url('net.pth'), tmp_path / 'net.pth', sha256=SHA256[:12])
    assert path.read_bytes() == CONTENT and left(tmp_path) == ['net.pth']
    assert server.asked == [None, 'bytes=300000-', 'bytes=500000-']


def test_the_next_call_goes_on_where_the_last_gave_up(server, tmp_path):
    server.breaks = [100_000, 1, 1]
    with pytest.raises(RuntimeError, match='100002 of 1024000 bytes|bytes read'):
        download(server.url('net.pth'), tmp_path / 'net.pth')
    assert left(tmp_path) == ['net.pth.part', 'net.pth.part.json']
    download(server.url('net.pth'), tmp_path / 'net.pth', size=len(CONTENT))
    assert (tmp_path / 'net.pth').read_bytes() == CONTENT and left(tmp_path) == ['net.pth']
    assert server.asked[-1] == 'bytes=100002-'


@pytest.mark.parametrize('change', ['version', 'no-version', 'no-ranges', 'note-cut-short'])
def test_it_starts_anew_where_the_part_cannot_be_trusted(server, tmp_path, change):
    server.breaks = [100_000, 0, 0]
    with pytest.raises(RuntimeError):
        download(server.url('net.pth'), tmp_path / 'net.pth')
    server.content = CONTENT[::-1]
    if change == 'version':
        server.version = '"2"'
    elif change == 'no-version':
        (tmp_path / 'net.pth.part.json').unlink()
        server.version = None
    elif change == 'no-ranges':
        server.ranges = False
    else:
        (tmp_path / 'net.pth.part.json').write_text('{"url": "ht')
    download(server.url('net.pth'), tmp_path / 'net.pth')
    assert (tmp_path / 'net.pth').read_bytes() == CONTENT[::-1]


def test_a_busy_server_is_asked_again_and_a_missing_file_is_not(server, tmp_path):
    server.statuses = [503, 429]
    assert download(server.url('net.pth'), tmp_path / 'net.pth').read_bytes() == CONTENT
    server.statuses, server.asked = [404], []
    with pytest.raises(RuntimeError, match='gone.pth: HTTP Error 404'):
        download(server.url('gone.pth'), tmp_path / 'gone.pth')
    assert len(server.asked) == 1 and left(tmp_path) == ['net.pth']


@pytest.mark.parametrize(
    ('wanted', 'words'),
    [
        (dict(size=5), 'has 1024000 bytes, not 5'),
        (dict(sha256='0123'), f'has sha256 {SHA256}, not 0123'),
        (dict(sha1='0123'), 'has sha1 .*, not 0123'),
        (dict(check=lambda path: 'is a web page'), 'is a web page'),
    ],
)
def test_another_file_is_refused_and_not_kept(server, tmp_path, wanted, words):
    with pytest.raises(RuntimeError, match=words):
        download(server.url('net.pth'), tmp_path / 'net.pth', **wanted)
    assert left(tmp_path) == []


def test_a_file_that_does_not_fit_is_not_begun(server, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, 'disk_usage', lambda _: SimpleNamespace(free=1000))
    with pytest.raises(RuntimeError, match='1024000 bytes are to come and .* has 1000 left'):
        download(server.url('net.pth'), tmp_path / 'net.pth')
    assert left(tmp_path) == [] and len(server.asked) == 1


def test_what_is_there_is_not_asked_for(server, tmp_path):
    (tmp_path / 'net.pth').write_bytes(b'old')
    assert download(server.url('net.pth'), tmp_path / 'net.pth').read_bytes() == b'old'
    assert server.asked == []
