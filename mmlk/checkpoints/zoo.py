"""Published checkpoints: where they are and what they hold.

A name is what the publisher calls the file (its stem, or the repository of a hub). Wherever a
checkpoint is asked for, ``mmlk://<name>`` means an entry of this table. No publisher states a
checksum, so ``sha256`` is None throughout: note it when you obtain a file, and pass it as
``sha256=...`` from then on.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

SCHEME = 'mmlk://'
HUB_SCHEME = 'hf-hub:'
"""``hf-hub:<owner>/<name>``, as in timm, means the safetensors file of that repository."""


@dataclass(frozen=True)
class Entry:
    """One published file.

    Attributes:
        name: What the publisher calls it.
        url: Where it is, or was.
        family: Family of the backbone.
        arch: Its ``arch``, or None if no backbone of this package has that layout.
        task: ``classification``, ``ade20k`` or ``coco``; the latter two hold whole models, whose
            backbone is taken with ``prefix='backbone.'``.
        repository: Authors' repository.
        licence: Licence of that repository.
        data: Training data and schedule.
        megabytes: Approximate size, None where unknown.
        sha256: Checksum, None where no one published it.
        note: What to know before the download, such as a link that probably no longer works.
        tag: Of a classifier: what tells the weights of one ``arch`` apart, as in timm's ``name.tag``.
        image_size: Of a classifier: side of the images that it was evaluated on.
        classes: Of a classifier: their number.
        mean: Of a classifier: mean of its images, by colour, on a scale of 0 to 1.
        std: Likewise, the standard deviation.
    """

    name: str
    url: str
    family: str
    arch: str | None
    task: str
    repository: str
    licence: str
    data: str
    megabytes: float | None = None
    sha256: str | None = None
    note: str = ''
    tag: str = ''
    image_size: int = 224
    classes: int = 1000
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)


def _inceptionnext() -> Iterator[Entry]:
    base = 'https://github.com/sail-sg/inceptionnext/releases/download/model/'
    sizes = {'atto': 16.7, 'tiny': 112, 'small': 198, 'base': 347, 'base_384': 347}
    common: dict[str, Any] = dict(
        family='inceptionnext',
        task='classification',
        repository='sail-sg/inceptionnext',
        licence='Apache-2.0',
    )
    for size, megabytes in sizes.items():
        arch, edge = size.split('_')[0], '384' if size.endswith('384') else '224'
        data = f'ImageNet-1K, {edge} x {edge}'
        sized: dict[str, Any] = dict(
            tag='sail_in1k_384' if edge == '384' else 'sail_in1k', image_size=int(edge), **common
        )
        yield Entry(
            f'inceptionnext_{size}',
            f'{base}inceptionnext_{size}.pth',
            arch=arch,
            data=data,
            megabytes=megabytes,
            **sized,
        )
        tag = f'timm/inception_next_{arch}.sail_in1k{"_384" if edge == "384" else ""}'
        yield Entry(
            tag,
            _hub(tag),
            arch=arch,
            data=data,
            megabytes=megabytes,
            note='timm form of the same weights',
            **sized,
        )
    tag = 'whyu/inception_next_atto.sail_in1k'
    yield Entry(
        tag,
        _hub(tag),
        arch='atto',
        data='ImageNet-1K, 224 x 224',
        megabytes=16.7,
        note="the author's own copy in timm form",
        tag='sail_in1k',
        **common,
    )


def _slak() -> Iterator[Entry]:
    common: dict[str, Any] = dict(family='slak', repository='VITA-Group/SLaK', licence='MIT')
    drive = 'https://drive.google.com/file/d/{}/view'
    surf = 'https://surfdrive.surf.nl/files/index.php/s/{}/download'
    gone = 'SURFdrive links of that age were reported dead in 2026'
    for name, arch, key in (
        ('slak_tiny', 'tiny', '1Iut2f5FMS_77jGPYoUJDQzDIXOsax1u4'),
        ('slak_small', 'small', '1etM6KQbnlsgDAZ37adsQJ3UI8Bbv2AVe'),
        ('slak_base', 'base', '1duUxUD3RSblQ6eDHd0n-u0aulwGypf1j'),
    ):
        yield Entry(
            name,
            drive.format(key),
            arch=arch,
            task='classification',
            data='ImageNet-1K, 300 epochs, 40 % sparse',
            tag='in1k_300e',
            note='Google Drive',
            **common,
        )
    for name, arch, key in (
        ('slak_tiny_31_120e', 'tiny_31', 'VXzBxFXQdlAQ7h8'),
        ('slak_tiny_51_120e', 'tiny', 'WiQYWNclJ9bW5XV'),
        ('slak_tiny_61_120e', 'tiny_61', 'VpR1te71NmVImJb'),
    ):
        yield Entry(
            name,
            surf.format(key),
            arch=arch,
            task='classification',
            data='ImageNet-1K, 120 epochs, 40 % sparse',
            tag='in1k_120e',
            note=gone,
            **common,
        )
    for name, key in (
        ('convnext_l2s_tiny', 'cR6KLvxjlUshUQA'),
        ('convnext_l2s_small', 'PYqL3rVff3Nu2sP'),
    ):
        yield Entry(
            name,
            surf.format(key),
            arch=None,
            task='classification',
            data='ImageNet-1K, distilled from SLaK; 7x7 kernels, not decomposed',
            note=gone,
            **common,
        )
    for size, key in (
        ('tiny', 'cc6Pqb7IZaecWMv'),
        ('small', 'HMLBXtKUDY6wyFF'),
        ('base', 'JDZ6dMBMZDxUHQG'),
    ):
        yield Entry(
            f'upernet_slak_{size}',
            surf.format(key),
            arch=size,
            task='ade20k',
            data='ADE20K, UperNet, 160k iterations',
            note=gone,
            **common,
        )
    yield Entry(
        'cascade_mask_rcnn_slak_tiny_12e',
        surf.format('2IvPyGgSTT2RvPu'),
        arch='tiny',
        task='coco',
        data='COCO, Cascade Mask R-CNN, 12 epochs',
        note=gone,
        **common,
    )


def _dcls() -> Iterator[Entry]:
    base = 'https://zenodo.org/record/7112021/files/'
    common: dict[str, Any] = dict(
        family='dcls_convnext', repository='K-H-Ismail/ConvNeXt-dcls', licence='MIT'
    )
    for size in ('tiny', 'small', 'base'):
        for name, task, data in (
            (f'convnext_dcls_{size}_1k_224_ema', 'classification', 'ImageNet-1K, 224 x 224, EMA'),
            (
                f'upernet_convnext_dcls_{size}_1k_512x512',
                'ade20k',
                'ADE20K, UperNet, 160k iterations',
            ),
            (
                f'cascade_mask_rcnn_convnext_dcls_{size}_1k_3x',
                'coco',
                'COCO, Cascade Mask R-CNN, 36 epochs',
            ),
        ):
            yield Entry(
                name,
                f'{base}{name}.pth',
                arch=size,
                task=task,
                data=data,
                tag='in1k_ema' if task == 'classification' else '',
                **common,
            )
    name = 'convnext_dcls_gauss_tiny_1k_224_ema'
    yield Entry(
        name,
        f'https://zenodo.org/record/8029747/files/{name}.pth',
        arch='tiny_gauss',
        task='classification',
        data='ImageNet-1K, 224 x 224, EMA; 23x23 window',
        tag='in1k_ema',
        **common,
    )


def _recnext() -> Iterator[Entry]:
    base = 'https://github.com/suous/RecNeXt/releases/download/'
    common: dict[str, Any] = dict(
        family='recnext', repository='suous/RecNeXt', licence='Apache-2.0'
    )
    m, a = [f'm{i}' for i in range(6)], [f'a{i}' for i in range(6)]
    stride8 = ['t', 's', 'b', *(f'{size}_share_channel' for size in 'tsb')]
    for arch in (*m, *a, *stride8):
        release = 'v1.0' if arch in m else 'v2.0'
        for kind, hub in (('distill', 'dist'), ('without_distill', 'base')):
            name = f'recnext_{arch}_{kind}_300e'
            data = f'ImageNet-1K, 300 epochs, {kind.replace("_", " ")}'
            weights = f'{hub}_300e_in1k'
            yield Entry(
                name,
                f'{base}{release}/{name}.pth',
                arch=arch,
                task='classification',
                data=data,
                tag=weights,
                **common,
            )
            tag = f'suous/recnext_{arch}.{weights}'
            yield Entry(
                tag,
                _hub(tag),
                arch=arch,
                task='classification',
                data=data,
                note='hub copy of the same weights',
                tag=weights,
                **common,
            )
    for arch in ('m3', 'm4', 'm5', 'a3', 'a4', 'a5'):
        release = 'v1.0' if arch in m else 'v2.0'
        for task, data in (
            ('coco', 'COCO, Mask R-CNN, 12 epochs'),
            ('ade20k', 'ADE20K, Semantic FPN, 80k iterations'),
        ):
            name = f'recnext_{arch}_{task}'
            yield Entry(
                name, f'{base}{release}/{name}.pth', arch=arch, task=task, data=data, **common
            )


def _replknet() -> Iterator[Entry]:
    drive = 'https://drive.google.com/file/d/{}/view'
    common: dict[str, Any] = dict(
        family='replknet',
        task='classification',
        repository='DingXiaoH/RepLKNet-pytorch',
        licence='MIT',
        note='Google Drive',
    )
    for size, training, side, key in (
        ('31B', '1K', 224, '1azQUiCxK9feYVkkrPqwVPBtNsTzDrX7S'),
        ('31B', '1K', 384, '1vo-P3XB6mRLUeDzmgv90dOu73uCeLfZN'),
        ('31B', '22K-to-1K', 224, '1DslZ2voXZQR1QoFY9KnbsHAeF84hzS0s'),
        ('31B', '22K-to-1K', 384, '1Sc46BWdXXm2fVP-K_hKKU_W8vAB-0duX'),
        ('31L', '22K-to-1K', 384, '1JYXoNHuRvC33QV1pmpzMTKEni1hpWfBl'),
    ):
        before = 'ImageNet-22K, then ' if training != '1K' else ''
        yield Entry(
            f'RepLKNet-{size}_ImageNet-{training}_{side}',
            drive.format(key),
            arch=size.lower(),
            data=f'{before}ImageNet-1K, {side} x {side}',
            tag=f'{"in22k_ft_" if before else ""}in1k{"_384" if side == 384 else ""}',
            image_size=side,
            **common,
        )
    for size, key in (
        ('31B', '1PYJiMszZYNrkZOeYwjccvxX8UHMALB7z'),
        ('31L', '16jcPsPwo5rko7ojWS9k_W-svHX-iFknY'),
    ):
        yield Entry(
            f'RepLKNet-{size}_ImageNet-22K',
            drive.format(key),
            arch=size.lower(),
            data='ImageNet-22K, 224 x 224',
            tag='in22k',
            classes=21841,
            **common,
        )
    yield Entry(
        'RepLKNet-XL_MegData73M_ImageNet1K',
        drive.format('1tPC60El34GntXByIRHb-z-Apm4Y5LX1T'),
        arch='xl',
        data='MegData73M, then ImageNet-1K, 320 x 320',
        tag='megdata73m_ft_in1k',
        image_size=320,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        **common,
    )


def _unireplknet() -> Iterator[Entry]:
    base = 'https://huggingface.co/DingXiaoH/UniRepLKNet/resolve/main/'
    common: dict[str, Any] = dict(
        family='unireplknet',
        task='classification',
        repository='AILab-CVC/UniRepLKNet',
        licence='Apache-2.0',
    )
    once = dict(a='77.03', f='78.58', p='80.23', n='81.64', t='83.21', s='83.91')
    for size, accuracy in once.items():
        name = f'unireplknet_{size}_in1k_224_acc{accuracy}'
        data = 'ImageNet-1K, 224 x 224'
        yield Entry(name, f'{base}{name}.pth', arch=size, data=data, tag='in1k', **common)
    tuned = dict(s='86.44', b='87.40', l='87.88', xl='87.96')
    for size, accuracy in tuned.items():
        name = f'unireplknet_{size}_in22k_to_in1k_384_acc{accuracy}'
        yield Entry(
            name,
            f'{base}{name}.pth',
            arch=size,
            data='ImageNet-22K, then ImageNet-1K, 384 x 384',
            tag='in22k_ft_in1k_384',
            image_size=384,
            **common,
        )
    for size in tuned:
        name, side = f'unireplknet_{size}_in22k_pretrain', 192 if size in ('l', 'xl') else 224
        yield Entry(
            name,
            f'{base}{name}.pth',
            arch=size,
            data=f'ImageNet-22K, {side} x {side}',
            tag='in22k',
            image_size=side,
            classes=21841,
            **common,
        )


def _hub(repository: str, revision: str = 'main') -> str:
    return f'https://huggingface.co/{repository}/resolve/{revision}/model.safetensors'


def hub_url(source: str) -> str:
    """Address behind ``hf-hub:<owner>/<name>``, after which ``@<revision>`` may follow.

    Raises:
        ValueError: If ``source`` has another form.
    """
    repository, _, revision = source.removeprefix(HUB_SCHEME).partition('@')
    if not re.fullmatch(r'[\w.-]+/[\w.-]+', repository):
        raise ValueError(
            f'zoo.hub_url: {source!r} is not {HUB_SCHEME}OWNER/NAME or {HUB_SCHEME}OWNER/NAME@REVISION'
        )
    return _hub(repository, revision or 'main')


def is_remote(source: str) -> bool:
    """Whether ``source`` names something to download: a URL, an entry, a repository of the hub."""
    return source.startswith(HUB_SCHEME) or re.match(r'[\w-]+://', source) is not None


ENTRIES: Mapping[str, Entry] = {
    entry.name: entry
    for make in (_inceptionnext, _slak, _dcls, _recnext, _replknet, _unireplknet)
    for entry in make()
}
"""Every published file by name."""


def find(name: str) -> Entry:
    """The entry called ``name``.

    Raises:
        ValueError: If there is none; the message lists the closest names.
    """
    if name not in ENTRIES:
        close = get_close_matches(name, ENTRIES, n=5, cutoff=0.4) or sorted(ENTRIES)
        raise ValueError(f'zoo.find: no checkpoint {name!r}; closest: {", ".join(close)}')
    return ENTRIES[name]
