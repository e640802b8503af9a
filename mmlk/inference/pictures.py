"""Predictions drawn over pictures, with Pillow alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    from mmlk.inference.prediction import Prediction

Palette = Sequence[tuple[int, int, int]]
_BAR = (170, 205, 240)


def paint_labels(
    image: np.ndarray, labels: np.ndarray, palette: Palette, opacity: float
) -> Image.Image:
    """``image`` (H, W, 3), each pixel mixed with the colour of its class in ``labels`` (H, W)."""
    colours = np.asarray(palette, np.float32)[labels]
    return Image.fromarray((image * (1 - opacity) + colours * opacity + 0.5).astype(np.uint8))


def paint_objects(prediction: Prediction, opacity: float) -> Image.Image:
    """Boxes with class and score, and masks where there are any, the best on top."""
    canvas = prediction.image.astype(np.float32)
    objects = range(len(prediction.boxes) - 1, -1, -1)
    for index in objects if prediction.masks is not None else ():
        mask = prediction.masks[index]
        colour = np.asarray(prediction.palette[prediction.box_labels[index]], np.float32)
        canvas[mask] = canvas[mask] * (1 - opacity) + colour * opacity
    drawn = Image.fromarray((canvas + 0.5).astype(np.uint8))
    draw = ImageDraw.Draw(drawn)
    font = _font(drawn.size)
    width = max(1, min(drawn.size) // 200)
    for index in objects:
        label = prediction.box_labels[index]
        colour = tuple(prediction.palette[label])
        box = [float(value) for value in prediction.boxes[index]]
        draw.rectangle(box, outline=colour, width=width)
        text = f'{prediction.classes[label]} {prediction.scores[index]:.2f}'
        *_, right, bottom = draw.textbbox((0, 0), text, font=font)
        # inside the picture, also for a box at its upper or right edge
        x = max(0.0, min(box[0], drawn.width - right - 4))
        y = max(0.0, box[1] - bottom - 2)
        draw.rectangle((x, y, x + right + 3, y + bottom + 2), fill=colour)
        draw.text((x + 2, y), text, fill=_readable_on(colour), font=font)
    return drawn


def add_legend(
    picture: Image.Image, occurring: Sequence[int], classes: Sequence[str], palette: Palette
) -> Image.Image:
    """``picture`` above a key of the classes that occur; without any it comes back as it is."""
    if not occurring:
        return picture
    font = _font(picture.size)
    line = font.getbbox('Ag')[3] + 4
    entry = max(int(font.getlength(classes[index])) for index in occurring) + 2 * line
    columns = max(1, picture.width // entry)
    rows = -(-len(occurring) // columns)
    canvas = Image.new(
        'RGB', (max(picture.width, entry), picture.height + rows * line + 4), 'white'
    )
    canvas.paste(picture, (0, 0))
    draw = ImageDraw.Draw(canvas)
    for place, index in enumerate(occurring):
        x, y = place % columns * entry + 4, picture.height + 2 + place // columns * line
        draw.rectangle((x, y + 2, x + line - 6, y + line - 4), fill=tuple(palette[index]))
        draw.text((x + line, y), classes[index], fill='black', font=font)
    return canvas


def add_scores(picture: Image.Image, rows: Sequence[tuple[str, float]]) -> Image.Image:
    """``picture`` above a line per class: its score, and a bar as long as the score.

    Args:
        picture: Image; a narrow one gets white at its right, so that the names can be read.
        rows: Class name and score, 0 to 1.
    """
    font = _font(picture.size)
    line = font.getbbox('Ag')[3] + 4
    texts = [f'{score:.3f}  {name}' for name, score in rows]
    width = max(picture.width, *(int(font.getlength(text)) + 9 for text in texts))
    canvas = Image.new('RGB', (width, picture.height + len(rows) * line + 4), 'white')
    canvas.paste(picture, (0, 0))
    draw = ImageDraw.Draw(canvas)
    for place, (text, (_, score)) in enumerate(zip(texts, rows, strict=True)):
        y = picture.height + 2 + place * line
        draw.rectangle((0, y + 1, score * (width - 1), y + line - 2), fill=_BAR)
        draw.text((4, y), text, fill='black', font=font)
    return canvas


def _font(size: tuple[int, int]) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=max(10, min(size) // 40))


def _readable_on(colour: Sequence[int]) -> str:
    red, green, blue = colour
    return 'black' if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else 'white'
