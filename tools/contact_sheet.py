"""Put image, truth and prediction of several scenes side by side on one picture.

The predictions are the label files that ``tools/test.py --out FOLDER`` writes: one PNG per image,
0 = ignored, 1 .. 150 = ADE20K classes, as in the annotations.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from mmseg.utils import ade_classes, ade_palette
from PIL import Image, ImageDraw

MARGIN, CAPTION = 6, 16
COLUMNS = ('image', 'truth', 'prediction')


def colour(labels: np.ndarray) -> Image.Image:
    """ADE20K colours of a label map; ignored pixels are black."""
    palette = np.array([[0, 0, 0], *ade_palette()], dtype=np.uint8)
    return Image.fromarray(palette[labels])


def legend(classes: list[int], width: int) -> Image.Image:
    """Names of ``classes`` (1 .. 150) beside their colours, wrapped to ``width`` pixels."""
    names, palette, column = ade_classes(), ade_palette(), 150
    per_row = max(1, width // column)
    rows = -(-len(classes) // per_row)
    sheet = Image.new('RGB', (width, rows * CAPTION + MARGIN), 'white')
    draw = ImageDraw.Draw(sheet)
    for i, label in enumerate(classes):
        x, y = (i % per_row) * column, (i // per_row) * CAPTION
        draw.rectangle((x + MARGIN, y + 3, x + MARGIN + 10, y + 13), fill=tuple(palette[label - 1]))
        draw.text((x + MARGIN + 16, y + 2), names[label - 1], fill='black')
    return sheet


def contact_sheet(images: list[Path], truths: Path, predictions: Path) -> Image.Image:
    """One row per image; truth and prediction are looked up by the image's stem."""
    rows, classes = [], set()
    for path in images:
        image = Image.open(path).convert('RGB')
        labels = [
            np.asarray(Image.open(folder / f'{path.stem}.png')) for folder in (truths, predictions)
        ]
        classes.update(int(label) for array in labels for label in np.unique(array) if label)
        rows.append([image, *map(colour, labels)])
    cell = max(tile.width for row in rows for tile in row)
    width = len(COLUMNS) * (cell + MARGIN) + MARGIN
    key = legend(sorted(classes), width)
    height = CAPTION + sum(row[0].height + MARGIN for row in rows) + key.height + MARGIN
    sheet = Image.new('RGB', (width, height), 'white')
    draw = ImageDraw.Draw(sheet)
    for column, name in enumerate(COLUMNS):
        draw.text((MARGIN + column * (cell + MARGIN), 2), name, fill='black')
    y = CAPTION
    for row in rows:
        for column, tile in enumerate(row):
            sheet.paste(tile, (MARGIN + column * (cell + MARGIN), y))
        y += row[0].height + MARGIN
    sheet.paste(key, (0, y))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('images', type=Path, help='folder of images')
    parser.add_argument('truths', type=Path, help='folder of annotation PNGs')
    parser.add_argument('predictions', type=Path, help='folder of predicted PNGs')
    parser.add_argument('out', type=Path, help='picture to write')
    parser.add_argument('--count', type=int, default=8, help='scenes to show, evenly spaced')
    args = parser.parse_args()

    predicted = {path.stem for path in args.predictions.glob('*.png')}
    found = [path for path in sorted(args.images.iterdir()) if path.stem in predicted]
    if not found:
        parser.error(f'no image of {args.images} has a prediction in {args.predictions}')
    chosen = found[::max(1, len(found) // args.count)][:args.count]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(chosen, args.truths, args.predictions).save(args.out)
    print(f'{len(chosen)} scenes: {args.out}')


if __name__ == '__main__':
    main()
