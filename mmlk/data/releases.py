"""The public releases of ADE20K and COCO: archives with their checksums, and what is in them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple


class Archive(NamedTuple):
    """One file of a release.

    Attributes:
        url: Where its publisher keeps it.
        sha1: Checksum, as GluonCV's data set scripts state it.
        files: For each folder inside, the suffix of its files and how many there are at least.
    """

    url: str
    sha1: str
    files: Mapping[str, tuple[str, int]]


class Release(NamedTuple):
    """A data set as published.

    Attributes:
        archives: Its files.
        home: Folder into which they are unpacked, by default.
        root: ``data_root`` of the configs, relative to ``home``.
        images: Folder with the images of a loader, relative to the root, and their number.
    """

    archives: tuple[Archive, ...]
    home: str
    root: str
    images: Mapping[str, tuple[str, int]]


_ADE20K = 'ADEChallengeData2016'
_COCO = 'http://images.cocodataset.org'
RELEASES = dict(
    ade20k=Release(
        (
            Archive(
                f'http://data.csail.mit.edu/places/ADEchallenge/{_ADE20K}.zip',
                '219e1696abb36c8ba3a3afe7fb2f4b4606a897c7',
                {
                    f'{_ADE20K}/images/training': ('.jpg', 20210),
                    f'{_ADE20K}/images/validation': ('.jpg', 2000),
                    f'{_ADE20K}/annotations/training': ('.png', 20210),
                    f'{_ADE20K}/annotations/validation': ('.png', 2000),
                },
            ),
        ),
        home='data/ade',
        root=_ADE20K,
        images=dict(
            train_dataloader=('images/training', 20210),
            test_dataloader=('images/validation', 2000),
        ),
    ),
    coco=Release(
        (
            Archive(
                f'{_COCO}/annotations/annotations_trainval2017.zip',
                '8551ee4bb5860311e79dace7e79cb91e432e78b3',
                {'annotations': ('2017.json', 2)},
            ),
            Archive(
                f'{_COCO}/zips/val2017.zip',
                '4950dc9d00dbe1c933ee0170f5797584351d2a41',
                {'val2017': ('.jpg', 5000)},
            ),
            Archive(
                f'{_COCO}/zips/train2017.zip',
                '10ad623668ab00c62c096f0ed636d6aff41faca5',
                {'train2017': ('.jpg', 118287)},
            ),
        ),
        home='data/coco',
        root='.',
        images=dict(train_dataloader=('train2017', 118287), test_dataloader=('val2017', 5000)),
    ),
)
"""Releases by name."""


def shortage(folder: Path, suffix: str, count: int) -> str:
    """That a folder holds fewer files than the release; '' if it does not."""
    found = sum(path.name.endswith(suffix) for path in folder.iterdir()) if folder.is_dir() else 0
    return '' if found >= count else f'{folder} holds {found} of {count} *{suffix} files'
