"""Read every file of the data sets that a config names.

Training stops at the first broken file it meets, which may be hours in; this looks at all of them
and reports all that is wrong.

    mmlk check-data mmlk::upernet_inceptionnext_t_ade20k.py
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from mmengine.config import Config

from mmlk.cli import arguments
from mmlk.cli.config import load_config
from mmlk.data.files import image_problem, image_size, label_problem
from mmlk.data.layout import (
    DataError,
    check_datasets,
    coco_paths,
    leaf_datasets,
    segmentation_folders,
)

LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
_REPORT_EVERY = 2000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    arguments.add_config(parser)
    arguments.add_cfg_options(parser)


def image_folders(cfg: Config) -> dict[Path, tuple[Path | None, dict]]:
    """Image folder -> its label folder, if any, and the config of its data set, each once."""
    folders = {}
    for loader in LOADERS:
        for dataset in leaf_datasets((cfg.get(loader) or {}).get('dataset')):
            segmentation, coco = segmentation_folders(dataset), coco_paths(dataset)
            if segmentation:
                folders[segmentation[0]] = (segmentation[1], dataset)
            elif coco:
                folders[coco[1]] = (None, dataset)
    return folders


def folder_problems(images: Path, labels: Path | None, dataset: dict) -> Iterator[str]:
    """Problems of every image, and of its label map, below a folder."""
    paths = sorted(images.rglob('*' + dataset.get('img_suffix', '.jpg')))
    print(f'reading {len(paths)} images in {images}', flush=True)
    for count, path in enumerate(paths, start=1):
        content = path.read_bytes()
        problem = image_problem(content, decode=True)
        if problem:
            yield f'{path}: {problem}'
        elif labels is not None:
            label = (labels / path.relative_to(images)).with_suffix(
                dataset.get('seg_map_suffix', '.png')
            )
            problem = label_problem(label.read_bytes(), size=image_size(content))
            if problem:
                yield f'{label}: {problem}'
        if count % _REPORT_EVERY == 0:
            print(f'  {count} of {len(paths)}', flush=True)


def run(args: argparse.Namespace) -> int:
    """Check; returns 0 if all is well."""
    try:
        cfg = load_config(args.config, args.cfg_options)
        for line in check_datasets(cfg, LOADERS, contents=True):
            print(line)
    except (DataError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    count = 0
    for images, (labels, dataset) in image_folders(cfg).items():
        for problem in folder_problems(images, labels, dataset):
            count += 1
            print(problem)
    print(f'{count} problem(s)')
    return int(count > 0)
