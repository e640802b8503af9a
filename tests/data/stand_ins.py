"""Stand-ins for packages that a few data sets read with and that are not installed.

Each has just the calls that the data set makes, over the folder of
:func:`tests.data.layouts.by_other_package`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest


def _module(monkeypatch: pytest.MonkeyPatch, name: str, **members: object) -> None:
    parent = name.partition('.')[0]
    for part in {parent, name}:
        monkeypatch.setitem(sys.modules, part, ModuleType(part))
    for key, value in members.items():
        setattr(sys.modules[name], key, value)


def put_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Provide lvis, dsdl, d_cube and onedl until the test ends."""
    import mmdet.datasets.dod
    import mmdet.datasets.dsdl
    import mmseg.datasets.dsdl
    from mmdet.datasets.api_wrappers import COCO

    _module(monkeypatch, 'lvis', LVIS=COCO)
    _module(monkeypatch, 'onedl.client', Client=_Client)
    for module in (mmdet.datasets.dsdl, mmseg.datasets.dsdl):
        monkeypatch.setattr(module, 'DSDLDataset', _Dsdl)
    monkeypatch.setattr(mmdet.datasets.dod, 'D3', _D3)


class _Dsdl:
    """One sample; its classes stand in the annotation file."""

    def __init__(self, dsdl_yaml: str, **_: object) -> None:
        content = json.loads(Path(dsdl_yaml).read_text())
        self.class_names = [category['name'] for category in content['categories']]

    def __iter__(self):
        box = SimpleNamespace(xyxy=[5, 5, 25, 25])
        yield {
            'Image': [SimpleNamespace(location='a.jpg')],
            'LabelMap': [SimpleNamespace(location='a.png')],
            'ImageShape': [SimpleNamespace(width=60, height=40)],
            'Bbox': [box],
            'Label': [SimpleNamespace(name=self.class_names[0])],
            'ignore_flag': [0],
        }


class _D3:
    """One image with one sentence."""

    def __init__(self, images: str, pickles: str) -> None:
        pass

    def load_sents(self, sent_ids: object = None) -> list[dict]:
        return [dict(id=1, raw_sent='a person')]

    def get_img_ids(self) -> list[int]:
        return [1]

    def load_imgs(self, image: int) -> list[dict]:
        return [dict(file_name='a.jpg', height=40, width=60)]

    def get_group_ids(self, img_ids: list[int]) -> list[int]:
        return [1]

    def get_sent_ids(self, group_ids: list[int]) -> list[int]:
        return [1]


class _Client:
    """A data set by the name of its folder."""

    @property
    def datasets(self) -> _Client:
        return self

    def load(self, name: str, pull_blobs: bool) -> _Blobs:
        return _Blobs(Path(name))


class _Blobs:
    label_map = SimpleNamespace(get_labels=lambda: ['person'], n_classes=1)

    def __init__(self, root: Path) -> None:
        self.inputs = SimpleNamespace(path_iterator=lambda: [str(root / 'train/a.jpg')])
        self.targets = SimpleNamespace(path_iterator=lambda: [str(root / 'labels/a.png')])

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: object) -> _Blobs:
        return self
