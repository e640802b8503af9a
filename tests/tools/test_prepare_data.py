"""Data sets fetched from a server, a folder or an archive: whole, safe, and only once."""

import hashlib
import io
import shutil
import stat
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from mmlk.checkpoints import download
from mmlk.cli.config import load_config
from mmlk.data.releases import RELEASES, Archive
from tests.file_server import serving
from tests.scripts import load_tool

ROOT = Path(__file__).parents[2]
COUNT = 3


tool = load_tool('prepare_data.py')


def archived(entries, links=()):
    """Bytes of a zip archive: name to content."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as archive:
        for name, content in entries.items():
            info = zipfile.ZipInfo(name)
            mode = stat.S_IFLNK if name in links else stat.S_IFREG
            info.external_attr = (mode | 0o644) << 16
            archive.writestr(info, content)
    return buffer.getvalue()


def entries_of(archive):
    return {
        f'{folder}/{number:04d}{suffix}': bytes([number]) * 1000
        for folder, (suffix, count) in archive.files.items()
        for number in range(count)
    }


@pytest.fixture
def ade20k(monkeypatch):
    """Makes the release one of three images a folder, in an archive of the given bytes."""

    def make(content=None, entries=None):
        release = RELEASES['ade20k']
        files = {
            folder: (suffix, COUNT) for folder, (suffix, _) in release.archives[0].files.items()
        }
        archive = release.archives[0]._replace(files=files)
        content = content or archived({**entries_of(archive), **(entries or {})})
        archive = archive._replace(sha1=hashlib.sha1(content).hexdigest())
        monkeypatch.setitem(RELEASES, 'ade20k', release._replace(archives=(archive,)))
        return content

    monkeypatch.setattr(download, '_WAITS', (0.0, 0.0))
    return make


def listed(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob('*'))


def test_a_mirror_that_breaks_off_and_a_second_call(ade20k, tmp_path, capsys):
    with serving(ade20k()) as server:
        server.breaks = [5000]
        command = ['ade20k', '--out', str(tmp_path / 'ade'), '--source', server.url('mirror')]
        assert tool.main(command) == 0
        assert server.asked == [None, 'bytes=5000-']
        before = listed(tmp_path / 'ade')
        assert len([name for name in before if name.endswith(('.jpg', '.png'))]) == 4 * COUNT
        assert {name.split('/')[0] for name in before} == {'ADEChallengeData2016'}
        assert tool.main(command) == 0 and len(server.asked) == 2
        assert listed(tmp_path / 'ade') == before
    said = capsys.readouterr().out
    assert ': complete' in said and f'MMLK_ADE20K_ROOT={tmp_path}/ade/ADEChallengeData2016' in said


@pytest.mark.parametrize('place', ['folder', 'file'])
def test_an_archive_of_this_machine_is_used_and_left(ade20k, tmp_path, place):
    file = tmp_path / 'archives/ADEChallengeData2016.zip'
    file.parent.mkdir()
    file.write_bytes(ade20k())
    source = file.parent if place == 'folder' else file
    assert tool.main(['ade20k', '--out', str(tmp_path / 'ade'), '--source', str(source)]) == 0
    assert file.is_file() and not list((tmp_path / 'ade').glob('*.zip*'))


@pytest.mark.parametrize(
    ('entries', 'links'),
    [
        ({'../outside.jpg': b'x'}, ()),
        ({'ADEChallengeData2016/../../outside.jpg': b'x'}, ()),
        ({'/tmp/outside.jpg': b'x'}, ()),
        ({'C:\\outside.jpg': b'x'}, ()),
        ({'ADEChallengeData2016/link': b'/etc'}, ('ADEChallengeData2016/link',)),
    ],
)
def test_an_entry_that_leads_out_is_refused(ade20k, tmp_path, entries, links):
    file = tmp_path / 'ADEChallengeData2016.zip'
    file.write_bytes(ade20k(archived(entries, links)))
    with pytest.raises(SystemExit, match='leads out of it; nothing was unpacked'):
        tool.main(['ade20k', '--out', str(tmp_path / 'ade'), '--source', str(file)])
    assert listed(tmp_path / 'ade') == [] and not (tmp_path / 'outside.jpg').exists()


def test_another_or_incomplete_archive_leaves_nothing(ade20k, tmp_path):
    file = tmp_path / 'ADEChallengeData2016.zip'
    command = ['ade20k', '--out', str(tmp_path / 'ade'), '--source', str(file)]
    ade20k()
    file.write_bytes(archived({'a': b'b'}))
    with pytest.raises(SystemExit, match='it is another file'):
        tool.main(command)
    file.write_bytes(ade20k(archived({'ADEChallengeData2016/images/training/0.jpg': b'x'})))
    with pytest.raises(SystemExit, match='images/training holds 1 of 3 '):
        tool.main(command)
    assert listed(tmp_path / 'ade') == []


def test_what_is_there_and_incomplete_is_not_touched(ade20k, tmp_path):
    file = tmp_path / 'ADEChallengeData2016.zip'
    file.write_bytes(ade20k())
    picture = tmp_path / 'ade/ADEChallengeData2016/images/training/0.jpg'
    picture.parent.mkdir(parents=True)
    picture.write_bytes(b'mine')
    with pytest.raises(SystemExit, match='holds 1 of 3 .*.jpg files; remove .* or give another'):
        tool.main(['ade20k', '--out', str(tmp_path / 'ade'), '--source', str(file)])
    assert picture.read_bytes() == b'mine' and len(listed(tmp_path / 'ade')) == 4


def test_too_little_disk_is_named_before_unpacking(ade20k, tmp_path, monkeypatch):
    file = tmp_path / 'ADEChallengeData2016.zip'
    file.write_bytes(ade20k())
    monkeypatch.setattr(shutil, 'disk_usage', lambda _: SimpleNamespace(free=1000))
    with pytest.raises(SystemExit, match='has 1000 bytes left; .* unpacks to 12000'):
        tool.main(['ade20k', '--out', str(tmp_path / 'ade'), '--source', str(file)])
    assert listed(tmp_path / 'ade') == []


@pytest.mark.parametrize(
    ('name', 'config'),
    [('ade20k', 'fpn_recnext_m3_ade20k'), ('coco', 'mask_rcnn_recnext_m3_coco')],
)
def test_releases_have_the_layout_of_the_configs(name, config, monkeypatch):
    monkeypatch.delenv(f'MMLK_{name.upper()}_ROOT', raising=False)
    release, cfg = RELEASES[name], load_config(f'mmlk::{config}.py')
    assert Path(cfg.data_root) == Path(release.home) / release.root
    inside = {folder for archive in release.archives for folder in archive.files}
    for loader, (folder, _) in release.images.items():
        dataset = cfg[loader].dataset
        assert dataset.data_prefix.get('img_path', dataset.data_prefix.get('img')) == folder
        assert (Path(release.root) / folder).as_posix() in inside
    assert all(
        isinstance(archive, Archive) and len(archive.sha1) == 40 for archive in release.archives
    )
