"""Put image, truth and prediction of several test images of a segmentation config on one picture.

The predictions are the label files that ``tools/test.py CONFIG CHECKPOINT --out FOLDER`` writes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS, init_default_scope
from PIL import Image, ImageDraw

import mmlk  # noqa: F401  (resolves mmlk:: paths from here on)
from mmlk.cli.config import load_config

MARGIN, CAPTION, KEY_COLUMN = 6, 16, 150
COLUMNS = ('image', 'truth', 'prediction')
IGNORED = 255


def label_map(path: Path, shift: bool, old_to_new: dict[int, int] | None) -> np.ndarray:
    """Class indices of a label file as the data set counts them; ``IGNORED`` where there is none."""
    labels = np.asarray(Image.open(path)).astype(np.int64)
    if shift:
        labels = np.where(labels == 0, IGNORED, labels - 1)
    lookup = np.full(IGNORED + 1, IGNORED)
    lookup[:IGNORED] = [(old_to_new or {}).get(i, i) for i in range(IGNORED)]
    return lookup[labels]


def tiles(dataset: BaseDataset, index: int, predictions: Path) -> list[Image.Image | np.ndarray]:
    """Image, true labels and predicted labels of one test image."""
    info, shift = dataset.get_data_info(index), dataset.metainfo['reduce_zero_label']
    return [
        Image.open(info['img_path']).convert('RGB'),
        label_map(info['seg_map_path'], shift, info['label_map']),
        label_map(predictions / f'{Path(info["img_path"]).stem}.png', shift, None),
    ]


def contact_sheet(rows: list[list], metainfo: dict) -> Image.Image:
    """One row per image, and a key of the classes that occur."""
    palette = np.zeros((IGNORED + 1, 3), np.uint8)
    palette[: len(metainfo['classes'])] = metainfo['palette']
    occurring = sorted(
        {int(i) for _, *maps in rows for labels in maps for i in np.unique(labels)} - {IGNORED}
    )
    rows = [
        [image, *(Image.fromarray(palette[labels]) for labels in maps)] for image, *maps in rows
    ]
    cell = max(tile.width for row in rows for tile in row)
    width = len(COLUMNS) * (cell + MARGIN) + MARGIN
    per_row = max(1, width // KEY_COLUMN)
    key_height = -(-len(occurring) // per_row) * CAPTION
    height = CAPTION + sum(row[0].height + MARGIN for row in rows) + key_height + MARGIN
    sheet = Image.new('RGB', (width, height), 'white')
    draw = ImageDraw.Draw(sheet)
    for column, name in enumerate(COLUMNS):
        draw.text((MARGIN + column * (cell + MARGIN), 2), name, fill='black')
    y = CAPTION
    for row in rows:
        for column, tile in enumerate(row):
            sheet.paste(tile, (MARGIN + column * (cell + MARGIN), y))
        y += row[0].height + MARGIN
    for i, label in enumerate(occurring):
        left, top = MARGIN + (i % per_row) * KEY_COLUMN, y + (i // per_row) * CAPTION
        draw.rectangle((left, top + 3, left + 10, top + 13), fill=tuple(map(int, palette[label])))
        draw.text((left + 16, top + 2), metainfo['classes'][label], fill='black')
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='segmentation config, for its test data')
    parser.add_argument('predictions', type=Path, help='folder of predicted label files')
    parser.add_argument('out', type=Path, help='picture to write')
    parser.add_argument('--count', type=int, default=8, help='images to show, evenly spaced')
    args = parser.parse_args()

    config = load_config(args.config)
    init_default_scope(config.default_scope)
    dataset = DATASETS.build(config.test_dataloader.dataset)
    predicted = {path.stem for path in args.predictions.glob('*.png')}
    found = [
        i
        for i in range(len(dataset))
        if Path(dataset.get_data_info(i)['img_path']).stem in predicted
    ]
    if not found:
        parser.error(f'{args.predictions} holds no prediction for the test images of {args.config}')
    chosen = found[:: max(1, len(found) // args.count)][: args.count]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    rows = [tiles(dataset, i, args.predictions) for i in chosen]
    contact_sheet(rows, dataset.metainfo).save(args.out)
    print(f'{len(chosen)} images: {args.out}')


if __name__ == '__main__':
    main()
