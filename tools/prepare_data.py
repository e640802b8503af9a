"""Download, unpack and verify ADE20K or COCO 2017 in the layout that the configs read.

    python tools/prepare_data.py ade20k
    python tools/prepare_data.py coco --out /data/coco --source /media/archives
    python tools/prepare_data.py ade20k --source https://mirror.example/ade

A download that breaks off goes on at the next call. What is there and complete is left alone. An
archive is unpacked beside its place and moved there when its files have been counted, so that a folder
is complete or absent.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import stat
import sys
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmlk.checkpoints.download import checksum, download
from mmlk.cli.arguments import plain_errors
from mmlk.data.releases import RELEASES, Archive, shortage


def prepare(archive: Archive, home: Path, source: str | None, keep: bool) -> str:
    """Bring what one archive holds to ``home``; returns a sentence on what was done.

    Args:
        archive: Of the release.
        home: Folder that gets the folders of the archive.
        source: Another place of the archives: a folder, the archive, or the address of a mirror.
        keep: Leave a downloaded archive where it is.

    Raises:
        RuntimeError: If the archive cannot be had, is another one, or lacks files.
        ValueError: If a folder is there but incomplete, or an entry of the archive leads out of it.
    """
    lacking = [shortage(home / folder, *files) for folder, files in archive.files.items()]
    tops = sorted({PurePosixPath(folder).parts[0] for folder in archive.files})
    if not any(lacking):
        return f'{", ".join(str(home / top) for top in tops)}: complete'
    there = [home / top for top in tops if (home / top).exists()]
    if there:
        raise ValueError(
            f'{next(filter(None, lacking))}; remove {there[0]} or give another --out, since nothing '
            'is unpacked over files that are there'
        )
    name = archive.url.rpartition('/')[2]
    local = local_archive(source, name)
    if local:
        found = checksum(local, 'sha1')
        if found != archive.sha1:
            raise RuntimeError(f'{local} has sha1 {found}, not {archive.sha1}: it is another file')
    url = f'{source.rstrip("/")}/{name}' if source and '://' in source else archive.url
    file = local or download(url, home / name, sha1=archive.sha1)
    unpack(file, home, archive)
    if not local and not keep:
        file.unlink()
    return f'{", ".join(str(home / top) for top in tops)}: unpacked from {local or url}'


def local_archive(source: str | None, name: str) -> Path | None:
    """The archive on this machine, None if the source is an address.

    Raises:
        ValueError: If the source is no address and has no such archive.
    """
    if source is None or '://' in source:
        return None
    path = Path(source) / name if Path(source).is_dir() else Path(source)
    if not path.is_file() or path.name != name:
        raise ValueError(f'--source {source}: there is no {name}')
    return path


def unpack(file: Path, home: Path, archive: Archive) -> None:
    """Unpack into a folder of its own inside ``home``, count, and move the folders into place."""
    with zipfile.ZipFile(file) as content:
        entries = content.infolist()
        for entry in entries:
            refuse_outside(file, entry)
        size, free = sum(entry.file_size for entry in entries), shutil.disk_usage(home).free
        if size > free:
            raise RuntimeError(f'{home} has {free} bytes left; {file.name} unpacks to {size}')
        with tempfile.TemporaryDirectory(prefix='.unpacking-', dir=home) as folder:
            content.extractall(folder)
            for inside, files in archive.files.items():
                lacking = shortage(Path(folder) / inside, *files)
                if lacking:
                    raise RuntimeError(f'{file}: {lacking}')
            for top in {PurePosixPath(inside).parts[0] for inside in archive.files}:
                (Path(folder) / top).rename(home / top)


def refuse_outside(file: Path, entry: zipfile.ZipInfo) -> None:
    """Raise where an entry names a place outside the archive, or is a link to one."""
    path = PurePosixPath(entry.filename.replace('\\', '/'))
    link = stat.S_ISLNK(entry.external_attr >> 16)
    if link or path.is_absolute() or '..' in path.parts or ':' in path.parts[0]:
        raise ValueError(
            f'{file}: its entry {entry.filename!r} leads out of it; nothing was unpacked'
        )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('name', choices=RELEASES)
    parser.add_argument('--out', type=Path, help='folder to make (default: that of the configs)')
    parser.add_argument(
        '--source', help='folder with the archives, the archive, or the address of a mirror'
    )
    parser.add_argument('--keep', action='store_true', help='keep downloaded archives')
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format='%(message)s')
    release = RELEASES[args.name]
    home = args.out or Path(release.home)
    with plain_errors('prepare_data.py'):
        home.mkdir(parents=True, exist_ok=True)
        for archive in release.archives:
            print(prepare(archive, home, args.source, args.keep), flush=True)
    print(
        f'data_root={home / release.root}, or MMLK_{args.name.upper()}_ROOT={home / release.root}'
    )
    return 0


if __name__ == '__main__':
    sys.exit(main())
