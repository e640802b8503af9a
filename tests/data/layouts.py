"""Writes tiny folders in the layouts that data sets have."""

from __future__ import annotations

import csv
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 40, 60


class Layout(NamedTuple):
    """How to make a folder, and two ways to break it.

    Attributes:
        make: Writes the files under a root and returns the settings of the data set, sans type.
        image: The image, relative to the root.
        annotation: The label map or the annotation file, relative to the root.
    """

    make: Callable[[Path], dict]
    image: str
    annotation: str


def write_image(path: Path) -> None:
    """A picture, or an array where the suffix says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == '.npy':
        np.save(path, np.zeros((HEIGHT, WIDTH, 25), np.float32))
    elif path.suffix == '.gz':
        path.write_bytes(b'\x1f\x8b a volume')
    else:
        Image.fromarray(np.full((HEIGHT, WIDTH, 3), 90, np.uint8)).save(path)


def write_label(path: Path) -> None:
    """A label map of class 1."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ones((HEIGHT, WIDTH), np.uint8)).save(path)


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def segmentation(
    image_suffix: str,
    label_suffix: str,
    images: str = 'img_dir/train',
    labels: str = 'ann_dir/train',
    key: str = 'seg_map_path',
    inside: str = '',
    split: bool = False,
) -> Layout:
    """Images and label maps of the same names but for the suffix."""
    image, label = f'{images}/{inside}a_1{image_suffix}', f'{labels}/{inside}a_1{label_suffix}'

    def make(root: Path) -> dict:
        write_image(root / image)
        write_label(root / label)
        if split:
            (root / 'train.txt').write_text('a_1\n')
        return dict(
            data_root=str(root),
            data_prefix={'img_path': images, key: labels},
            **(dict(ann_file='train.txt') if split else {}),
        )

    return Layout(make, image, label)


def change_detection(suffix: str) -> Layout:
    def make(root: Path) -> dict:
        write_image(root / f'train/A/a{suffix}')
        write_image(root / f'train/B/a{suffix}')
        write_label(root / 'train/label/a.png')
        prefix = dict(img_path='train/A', img_path2='train/B', seg_map_path='train/label')
        return dict(data_root=str(root), data_prefix=prefix)

    return Layout(make, f'train/B/a{suffix}', 'train/label/a.png')


def decathlon(root: Path) -> dict:
    for folder in ('imagesTr', 'labelsTr'):
        write_image(root / folder / 'a.nii.gz')
    pair = dict(image='./imagesTr/a.nii.gz', label='./labelsTr/a.nii.gz')
    content = dict(labels={'0': 'background', '1': 'edema'}, training=[pair], test=[])
    write_json(root / 'dataset.json', content)
    return dict(data_root=str(root), ann_file='dataset.json')


def coco_content(name: str = 'person', **more: object) -> dict:
    """One image with one object, as an instance annotation file says it."""
    image = dict(id=1, file_name='a.jpg', height=HEIGHT, width=WIDTH)
    box = dict(id=1, image_id=1, category_id=1, bbox=[5, 5, 20, 20], area=400.0, iscrowd=0)
    box.update(segmentation=[[5, 5, 25, 5, 25, 25, 5, 25]])
    return dict(images=[image], annotations=[box], categories=[dict(id=1, name=name)]) | more


def coco(name: str = 'person', key: str = 'img', edit: Callable = dict, **settings) -> Layout:
    """An annotation file beside a folder of images."""

    def make(root: Path) -> dict:
        write_image(root / 'train/a.jpg')
        write_json(root / 'annotations/train.json', edit(coco_content(name)))
        return dict(
            data_root=str(root),
            ann_file='annotations/train.json',
            data_prefix={key: 'train'},
            **settings,
        )

    return Layout(make, 'train/a.jpg', 'annotations/train.json')


def lvis(content: dict) -> dict:
    content['images'][0].update(
        coco_url='http://images.cocodataset.org/a.jpg',
        neg_category_ids=[],
        not_exhaustive_category_ids=[],
    )
    return content


def tracking(content: dict) -> dict:
    content['videos'] = [dict(id=1, name='v')]
    content['images'][0].update(video_id=1, frame_id=0)
    content['annotations'][0].update(instance_id=1, video_id=1, mot_conf=1.0, visibility=1.0)
    return content


def phrases(content: dict) -> dict:
    content['images'][0].update(
        caption='a person', tokens_positive_eval=[[[2, 8]]], dataset_name='refcoco'
    )
    content['annotations'][0].update(phrase_ids=0)
    return content


def v3det(root: Path) -> dict:
    (root / 'annotations').mkdir(parents=True)
    (root / 'annotations/names.txt').write_text('person\n')
    return coco().make(root) | dict(label_file='annotations/names.txt')


def panoptic(name: str) -> Layout:
    def make(root: Path) -> dict:
        write_image(root / 'train/a.jpg')
        write_image(root / 'panoptic/a.png')
        segment = dict(id=1, category_id=1, bbox=[5, 5, 20, 20], area=400, iscrowd=0)
        annotation = dict(image_id=1, file_name='a.png', segments_info=[segment])
        content = coco_content(name, annotations=[annotation])
        content['categories'] = [dict(id=1, name=name, isthing=1)]
        write_json(root / 'panoptic.json', content)
        return dict(
            data_root=str(root),
            ann_file='panoptic.json',
            data_prefix=dict(img='train', seg='panoptic'),
        )

    return Layout(make, 'train/a.jpg', 'panoptic/a.png')


def caption(root: Path) -> dict:
    write_image(root / 'train/a.jpg')
    write_json(root / 'captions.json', [dict(image='a.jpg', caption='a person')])
    return dict(data_root=str(root), ann_file='captions.json', data_prefix=dict(img_path='train'))


def crowd_human(root: Path) -> dict:
    write_image(root / 'Images/a.jpg')
    box = dict(tag='person', fbox=[5, 5, 20, 20], hbox=[5, 5, 5, 5], vbox=[5, 5, 20, 20])
    write_json(root / 'annotation_train.odgt', dict(ID='a', gtboxes=[box]))
    return dict(
        data_root=str(root), ann_file='annotation_train.odgt', data_prefix=dict(img='Images')
    )


def plain(root: Path) -> dict:
    """MMEngine's own annotation format."""
    write_image(root / 'train/a.jpg')
    instance = dict(bbox=[5, 5, 25, 25], bbox_label=0, ignore_flag=0)
    sample = dict(img_path='a.jpg', height=HEIGHT, width=WIDTH, instances=[instance])
    write_json(root / 'data.json', dict(metainfo=dict(classes=['person']), data_list=[sample]))
    return dict(data_root=str(root), ann_file='data.json', data_prefix=dict(img_path='train'))


def grounding(root: Path) -> dict:
    write_image(root / 'train/a.jpg')
    detection = dict(instances=[dict(bbox=[5, 5, 25, 25], label=0, category='person')])
    write_json(
        root / 'od.json', dict(filename='a.jpg', height=HEIGHT, width=WIDTH, detection=detection)
    )
    write_json(root / 'label_map.json', {'0': 'person'})
    return dict(
        data_root=str(root),
        ann_file='od.json',
        label_map_file='label_map.json',
        data_prefix=dict(img='train'),
        return_classes=True,
    )


def open_images(root: Path) -> dict:
    write_image(root / 'train/a.jpg')
    with open(root / 'boxes.csv', 'w', newline='') as file:
        rows = csv.writer(file)
        rows.writerow(['ImageID', *['column'] * 12])
        rows.writerow(['a', 'xclick', '/m/1', 1, 0.1, 0.5, 0.1, 0.5, 0, 0, 0, 0, 0])
    (root / 'names.csv').write_text('/m/1,person\n')
    write_json(
        root / 'hierarchy.json', dict(LabelName='/m/0', Subcategory=[dict(LabelName='/m/1')])
    )
    meta = [dict(filename='a.jpg', ori_shape=(HEIGHT, WIDTH, 3))]
    (root / 'metas.pkl').write_bytes(pickle.dumps(meta))
    return dict(
        data_root=str(root),
        ann_file='boxes.csv',
        label_file='names.csv',
        hierarchy_file='hierarchy.json',
        meta_file='metas.pkl',
        data_prefix=dict(img='train'),
    )


def open_images_challenge(root: Path) -> dict:
    settings = open_images(root)
    (root / 'boxes.txt').write_text(f'a.jpg\n{WIDTH} {HEIGHT}\n1\n1 0.1 0.1 0.5 0.5 0\n')
    (root / 'names.csv').write_text('/m/1,person,1\n')
    np.save(root / 'hierarchy.npy', np.eye(2))
    return settings | dict(ann_file='boxes.txt', hierarchy_file='hierarchy.npy')


def referring(root: Path) -> dict:
    write_image(root / 'train/a.jpg')
    write_json(root / 'instances.json', coco_content())
    ref = dict(ref_id=1, ann_id=1, image_id=1, split='train', sentences=[dict(raw='the person')])
    (root / 'refs.p').write_bytes(pickle.dumps([ref]))
    return dict(
        data_root=str(root),
        ann_file='instances.json',
        split_file='refs.p',
        data_prefix=dict(img_path='train'),
    )


def identities(root: Path) -> dict:
    write_image(root / 'train/a.jpg')
    (root / 'train.txt').write_text('a.jpg 0\n')
    return dict(data_root=str(root), ann_file='train.txt', data_prefix=dict(img_path='train'))


def voc(name: str, folder: str, images: str, prefix: dict, **settings: object) -> Layout:
    """An XML file per image."""

    def make(root: Path) -> dict:
        write_image(root / images / 'a.jpg')
        xml = root / folder / 'Annotations/a.xml'
        xml.parent.mkdir(parents=True)
        xml.write_text(
            f'<annotation><folder>set</folder><size><width>{WIDTH}</width><height>{HEIGHT}</height>'
            f'</size><object><name>{name}</name><bndbox><xmin>5</xmin><ymin>5</ymin><xmax>25</xmax>'
            '<ymax>25</ymax></bndbox></object></annotation>'
        )
        (root / 'train.txt').write_text('a\n')
        return dict(data_root=str(root), ann_file='train.txt', data_prefix=prefix, **settings)

    return Layout(make, f'{images}/a.jpg', f'{folder}/Annotations/a.xml')


def by_other_package(root: Path) -> dict:
    """What the stand-ins of :mod:`tests.data.stand_ins` find."""
    write_image(root / 'train/a.jpg')
    write_label(root / 'labels/a.png')
    write_json(root / 'train.json', coco_content())
    (root / 'pickles').mkdir()
    return dict(data_root=str(root), ann_file='train.json')
