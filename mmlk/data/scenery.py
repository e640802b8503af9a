"""Surfaces: the large regions of a scene and the structures that cross it.

Colours of different classes overlap on purpose (grey walls, roads and buildings; blue sky and
water; green trees and grass), so that texture, shape and place have to be learned too.
"""

from __future__ import annotations

import numpy as np

from mmlk.data.canvas import Canvas, fractal, noise, pick, tone, triangle_wave
from mmlk.data.classes import ADE20K

SKY = [(120, 165, 220), (150, 180, 210), (175, 185, 195), (205, 180, 165), (100, 140, 200)]
WATER = [(70, 105, 135), (85, 120, 125), (95, 120, 155), (110, 125, 135)]
MOUNTAIN = [(95, 90, 120), (125, 98, 78), (88, 84, 104), (112, 92, 88)]
GRASS = [(95, 140, 60), (120, 145, 70), (80, 125, 65), (140, 150, 80)]
TREE = [(55, 95, 45), (70, 100, 40), (85, 110, 50), (100, 100, 40)]
ROAD = [(95, 95, 98), (110, 108, 105), (80, 82, 88)]
PAVING = [(180, 172, 160), (165, 160, 158), (190, 175, 155)]
FACADE = [(170, 110, 90), (190, 175, 150), (150, 150, 155), (120, 130, 150), (200, 190, 175)]
PAINT = [(215, 205, 185), (190, 205, 210), (205, 190, 195), (180, 195, 175), (200, 200, 200)]
PLANK = [(150, 105, 70), (170, 130, 90), (125, 85, 60), (160, 140, 120)]
DOOR = [(120, 75, 50), (150, 110, 80), (95, 80, 75), (185, 180, 170)]
POLE = [(60, 62, 66), (85, 88, 90), (45, 50, 48)]
STONE = [(150, 138, 122), (128, 132, 138), (165, 150, 140)]


def ground_coordinates(canvas: Canvas, horizon: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coordinates on a ground plane seen in perspective.

    Returns:
        Lateral (H, W) and depth (H, 1) coordinates, of about 1 per object width near the viewer,
        and (H, 1) contrast in 0..1 that fades where the texture would alias.
    """
    drop = np.maximum(canvas.y - np.float32(horizon), np.float32(1))
    depth = canvas.height / drop
    lateral = (canvas.x - canvas.width / 2) * depth / canvas.height
    return lateral, 4 * depth, np.minimum(1, drop / (0.22 * canvas.height))


def sky(canvas: Canvas, horizon: float) -> None:
    """Vertical gradient with clouds; the first layer of an outdoor scene."""
    rng = canvas.rng
    zenith = pick(rng, SKY)
    fade = np.clip(canvas.y / max(horizon, 1), 0, 1)[..., None]
    colours = zenith + (np.asarray((225, 225, 225), np.float32) - zenith) * fade * 0.6
    cell = canvas.height * (0.15 + 0.2 * rng.random())
    clouds = fractal(rng, canvas.y / np.float32(0.5 * cell), canvas.x / np.float32(cell))
    cover = np.clip((clouds - 0.62 + 0.2 * rng.random()) * 4, 0, 1)[..., None]
    colours = colours + (np.float32(238) - colours) * cover * 0.8
    canvas.paint(canvas.rectangle(0, 0, canvas.height, canvas.width), colours, ADE20K['sky'])


def ridge(canvas: Canvas, base: float, amplitude: float, cell: float) -> np.ndarray:
    """A random skyline: one height per column."""
    line = fractal(canvas.rng, np.float32(0.5), canvas.x / np.float32(cell))
    return base - amplitude * line[0]


def mountain(canvas: Canvas, horizon: float) -> None:
    """A mountain range behind everything, with slanted ridges and sometimes snow."""
    rng = canvas.rng
    line = ridge(canvas, horizon, canvas.height * (0.24 + 0.22 * rng.random()), canvas.width * 0.22)
    slope = canvas.y + canvas.x * np.float32(0.6)
    field = fractal(rng, slope / np.float32(9), (canvas.y - canvas.x) / np.float32(26))
    colours = tone(pick(rng, MOUNTAIN), field, 0.5, 1.45)
    if rng.random() < 0.35:
        cap = canvas.y < line[None, :] + canvas.height * (0.04 + 0.05 * field)
        colours = np.where(cap[..., None], tone((228, 232, 240), field, 0.8, 1.1), colours)
    canvas.paint(canvas.below(line), colours, ADE20K['mountain'])


def water(canvas: Canvas, horizon: float, top: float, bottom: float) -> None:
    """A lake or river across the whole width, with flat bright ripples."""
    rng = canvas.rng
    lateral, depth, contrast = ground_coordinates(canvas, horizon)
    ripples = noise(rng, canvas.y * np.float32(0.55), lateral * np.float32(4))
    swell = noise(rng, depth * np.float32(1.5), lateral)
    field = 0.5 + (0.75 * ripples + 0.25 * swell - 0.5) * (0.5 + 0.5 * contrast)
    colours = tone(pick(rng, WATER), field, 0.6, 1.45)
    glints = (ripples > 0.8)[..., None]
    colours = np.where(glints, colours + 45, colours)
    edge = ridge(canvas, top, canvas.height * 0.03, canvas.width * 0.3)
    window, mask = canvas.below(edge)
    canvas.paint((window, mask & (canvas.y < bottom)), colours, ADE20K['water'])


def grass(canvas: Canvas, horizon: float) -> None:
    """A meadow: fine upright blades over soft patches."""
    rng = canvas.rng
    lateral, depth, contrast = ground_coordinates(canvas, horizon)
    blades = noise(rng, canvas.y / np.float32(3.5), canvas.x / np.float32(1.3))
    patches = noise(rng, depth * np.float32(0.6), lateral * np.float32(2))
    field = 0.5 * patches + 0.5 * (0.5 + (blades - 0.5) * (0.4 + contrast))
    colours = tone(pick(rng, GRASS), field, 0.65, 1.4)
    shape = canvas.rectangle(horizon, 0, canvas.height, canvas.width)
    canvas.paint(shape, colours[shape[0]], ADE20K['grass'])


def paving(canvas: Canvas, horizon: float, shape) -> None:
    """Sidewalk: pale slabs with dark joints."""
    rng = canvas.rng
    lateral, depth, contrast = ground_coordinates(canvas, horizon)
    size = 3.2 + 1.5 * rng.random()
    joints = np.maximum(
        triangle_wave(lateral * np.float32(size)), triangle_wave(depth * np.float32(0.28 * size))
    )
    grain = noise(rng, canvas.y / np.float32(2), canvas.x / np.float32(2))
    field = grain * 0.35 + 0.65 - 0.75 * np.clip(joints * 6 - 5, 0, 1) * contrast
    canvas.paint(shape, tone(pick(rng, PAVING), field, 0.55, 1.1)[shape[0]], ADE20K['sidewalk'])


def asphalt(canvas: Canvas, shape) -> None:
    """Road surface: grey, finely grained."""
    rng = canvas.rng
    grain = noise(rng, canvas.y / np.float32(1.2), canvas.x / np.float32(1.2))
    worn = noise(rng, canvas.y / np.float32(14), canvas.x / np.float32(60))
    colours = tone(pick(rng, ROAD, 8), 0.6 * grain + 0.4 * worn, 0.75, 1.2)
    canvas.paint(shape, colours[shape[0]], ADE20K['road'])


def road_ahead(canvas: Canvas, horizon: float) -> None:
    """A road with sidewalks that runs from the viewer to the horizon."""
    rng = canvas.rng
    height, width = canvas.height, canvas.width
    far = width * (0.25 + 0.5 * rng.random())
    near = width * (0.3 + 0.4 * rng.random())
    half = width * (0.26 + 0.14 * rng.random())
    side = half * (1.4 + 0.3 * rng.random())

    def strip(left: float, right: float):
        return canvas.polygon(
            [
                (horizon, far + 0.02 * left),
                (horizon, far + 0.02 * right),
                (height, near + right),
                (height, near + left),
            ]
        )

    paving(canvas, horizon, strip(-side, side))
    asphalt(canvas, strip(-half, half))
    marks = triangle_wave(height / np.maximum(canvas.y - horizon, 1) * np.float32(2.2)) > 0.45
    window, mask = strip(-0.035 * half, 0.035 * half)
    canvas.paint((window, mask & marks[window[0]]), (225, 222, 205), ADE20K['road'])


def road_across(canvas: Canvas, horizon: float) -> tuple[float, float]:
    """A road with a sidewalk that crosses the image sideways; returns its upper and lower edge."""
    rng = canvas.rng
    top = horizon + canvas.height * (0.1 + 0.12 * rng.random())
    bottom = top + canvas.height * (0.17 + 0.1 * rng.random())
    tilt = canvas.height * 0.1 * (rng.random() - 0.5)
    walk = canvas.height * (0.08 + 0.04 * rng.random())

    def band(upper: float, lower: float):
        return canvas.polygon(
            [
                (upper - tilt, 0),
                (upper + tilt, canvas.width),
                (lower + tilt, canvas.width),
                (lower - tilt, 0),
            ]
        )

    paving(canvas, horizon, band(top - walk * 0.6, bottom + walk))
    asphalt(canvas, band(top, bottom))
    middle = (top + bottom) / 2
    window, mask = band(middle - 1.2, middle + 1.2)
    dashes = triangle_wave(canvas.x[:, window[1]] / np.float32(0.13 * canvas.width)) > 0.4
    canvas.paint((window, mask & dashes), (225, 222, 205), ADE20K['road'])
    return top, bottom


def building(canvas: Canvas, left: float, right: float, top: float, base: float) -> None:
    """A facade with a grid of windows."""
    rng = canvas.rng
    shape = canvas.rectangle(top, left, base, right)
    y, x = canvas.grid(shape[0])
    colours = tone(pick(rng, FACADE), noise(rng, y / np.float32(2), x / np.float32(5)), 0.85, 1.12)
    storey = canvas.height * (0.055 + 0.03 * rng.random())
    bay = canvas.height * (0.05 + 0.035 * rng.random())
    row, column = (y - top) / storey, (x - left) / bay
    in_row, in_column = row - np.floor(row), column - np.floor(column)
    glass = (in_row > 0.28) & (in_row < 0.78) & (in_column > 0.25) & (in_column < 0.75)
    lit = noise(rng, np.floor(row) * np.float32(3.7), np.floor(column) * np.float32(5.3))
    panes = tone(pick(rng, [(60, 70, 85), (85, 95, 105)]), lit, 0.4, 1.5)
    colours = np.where(glass[..., None], panes, colours)
    canvas.paint(shape, colours, ADE20K['building'])


def tree(canvas: Canvas, base: float, centre: float, size: float) -> None:
    """A trunk and a crown of ragged, coarsely lit foliage; ``size`` is its height."""
    rng = canvas.rng
    trunk = size * (0.05 + 0.03 * rng.random())
    shape = canvas.rectangle(base - 0.5 * size, centre - trunk, base, centre + trunk)
    y, x = canvas.grid(shape[0])
    bark = noise(rng, y / np.float32(6), x / np.float32(1.5))
    canvas.paint(shape, tone((85, 65, 48), bark, 0.6, 1.3), ADE20K['tree'])
    cy, ry, rx = base - 0.64 * size, 0.4 * size, size * (0.26 + 0.12 * rng.random())
    window = canvas.window(cy - ry, centre - rx, cy + ry, centre + rx)
    y, x = canvas.grid(window)
    leaves = fractal(rng, y / np.float32(5.5), x / np.float32(5.5))
    rim = fractal(rng, y / np.float32(0.16 * size), x / np.float32(0.16 * size))
    dy, dx = (y - cy) / ry, (x - centre) / rx
    mask = dy * dy + dx * dx <= 0.55 + 0.75 * rim
    light = np.clip(0.5 - 0.35 * dy - 0.25 * dx, 0, 1)
    field = np.clip((leaves - 0.5) * 1.9 + 0.25 + 0.5 * light, 0, 1)
    canvas.paint((window, mask), tone(pick(rng, TREE), field, 0.35, 1.75), ADE20K['tree'])


def fence(canvas: Canvas, base: float, size: float, tilt: float) -> None:
    """Pickets and rails across the whole image; what shows between them counts as fence."""
    rng = canvas.rng
    colour = pick(rng, [(215, 210, 200), (130, 88, 60), (160, 120, 85)])
    line = (base + tilt * (canvas.x / canvas.width - 0.5))[0]
    window = canvas.window(0, 0, canvas.height, canvas.width)
    up = (line[None, :] - canvas.y) / np.float32(size)
    inside = (up >= 0) & (up <= 1)
    pitch = max(6.0, size * (0.2 + 0.08 * rng.random()))
    pickets = triangle_wave(canvas.x / np.float32(pitch)) > 0.4
    rails = ((up > 0.15) & (up < 0.33)) | ((up > 0.66) & (up < 0.84))
    canvas.label[window][inside] = ADE20K['fence']
    bars = inside & (pickets | rails)
    grain = noise(rng, canvas.y / np.float32(7), canvas.x / np.float32(1.7))
    canvas.paint((window, bars), tone(colour, grain, 0.75, 1.15), ADE20K['fence'])


def streetlight(canvas: Canvas, base: float, x: float, top: float, width: float) -> None:
    """A pole from the ground to near the upper edge with an arm and a lamp."""
    rng = canvas.rng
    colour, label = pick(rng, POLE, 8), ADE20K['streetlight']
    shape = canvas.rectangle(top, x - width / 2, base, x + width / 2)
    across = np.clip((canvas.grid(shape[0])[1] - x) / np.float32(width) + 0.5, 0, 1)
    canvas.paint(shape, tone(colour, across, 1.35, 0.75), label)
    canvas.paint(canvas.rectangle(base - 2 * width, x - width, base, x + width), colour, label)
    reach = width * (5 + 3 * rng.random()) * (1 if rng.random() < 0.5 else -1)
    canvas.paint(canvas.stroke(top, x, top - width, x + reach, 0.8 * width), colour, label)
    lamp = canvas.ellipse(top - 0.6 * width, x + reach, 1.1 * width, 2.2 * width)
    canvas.paint(lamp, (245, 235, 190), label)


def wires(canvas: Canvas, height: float) -> None:
    """Sagging overhead lines; no ADE20K class, hence ignored pixels."""
    rng = canvas.rng
    sag = canvas.height * (0.03 + 0.05 * rng.random())
    position = canvas.x / np.float32(canvas.width) * 2 - 1
    for offset in range(int(rng.integers(1, 4))):
        line = height + offset * 5 + sag * (1 - position * position)
        mask = np.abs(canvas.y - line) < 0.8
        canvas.paint((canvas.window(0, 0, canvas.height, canvas.width), mask), (40, 40, 45), 0)


def room(canvas: Canvas, skirting: float) -> None:
    """Wall and floor of an indoor scene; ``skirting`` is the height where they meet."""
    rng = canvas.rng
    field = noise(rng, canvas.y / np.float32(40), canvas.x / np.float32(40))
    if rng.random() < 0.5:
        pitch = np.float32(10 + 12 * rng.random())
        field = 0.75 * field + 0.25 * (triangle_wave(canvas.x / pitch) > 0.5)
    colours = tone(pick(rng, PAINT), field, 0.85, 1.08)
    canvas.paint(canvas.rectangle(0, 0, canvas.height, canvas.width), colours, ADE20K['wall'])
    rail = canvas.rectangle(skirting - 5, 0, skirting, canvas.width)
    canvas.paint(rail, pick(rng, STONE), ADE20K['wall'])
    horizon = skirting - 0.45 * canvas.height
    lateral, depth, contrast = ground_coordinates(canvas, horizon)
    board = lateral * np.float32(3.4)
    tint = noise(rng, np.floor(board) * np.float32(7.3), np.float32(0.5) + depth * 0)
    grain = noise(rng, depth * np.float32(0.8), board * np.float32(3))
    seams = np.clip(triangle_wave(board) * 8 - 7, 0, 1) * contrast
    colours = tone(pick(rng, PLANK), 0.45 * tint + 0.4 * grain + 0.15 - 0.4 * seams, 0.65, 1.35)
    shape = canvas.rectangle(skirting, 0, canvas.height, canvas.width)
    canvas.paint(shape, colours[shape[0]], ADE20K['floor'])


def door(canvas: Canvas, skirting: float, centre: float, size: float) -> None:
    """A panelled door that stands on the floor line; ``size`` is its height."""
    rng = canvas.rng
    half, top, label = 0.26 * size, skirting - size, ADE20K['door']
    colour = pick(rng, DOOR)
    canvas.paint(
        canvas.rectangle(top - 4, centre - half - 4, skirting, centre + half + 4),
        colour * 0.6,
        label,
    )
    shape = canvas.rectangle(top, centre - half, skirting, centre + half)
    y, x = canvas.grid(shape[0])
    grain = noise(rng, y / np.float32(20), x / np.float32(1.6))
    canvas.paint(shape, tone(colour, grain, 0.85, 1.15), label)
    for upper, lower in ((0.08, 0.45), (0.53, 0.92)):
        for side in (-0.52, 0.52):
            panel = canvas.rectangle(
                top + upper * size,
                centre + (side - 0.36) * half,
                top + lower * size,
                centre + (side + 0.36) * half,
            )
            canvas.shade(panel, 0.74)
    canvas.paint(
        canvas.ellipse(top + 0.5 * size, centre + 0.8 * half, 2.5, 2.5), (220, 200, 120), label
    )


def painting(canvas: Canvas, cy: float, cx: float, height: float, width: float) -> None:
    """A framed abstract picture on the wall."""
    rng = canvas.rng
    frame = canvas.rectangle(cy - height / 2, cx - width / 2, cy + height / 2, cx + width / 2)
    canvas.paint(frame, pick(rng, [(60, 45, 30), (190, 155, 70), (30, 30, 32)]), ADE20K['painting'])
    inner = canvas.rectangle(
        cy - height / 2 + 4, cx - width / 2 + 4, cy + height / 2 - 4, cx + width / 2 - 4
    )
    y, x = canvas.grid(inner[0])
    field = noise(rng, y / np.float32(9), x / np.float32(9))[..., None]
    first, second, third = (rng.random(3, dtype=np.float32) * 220 + 20 for _ in range(3))
    colours = np.where(field < 0.4, first, np.where(field < 0.6, second, third))
    canvas.paint(inner, colours, ADE20K['painting'])


def column(canvas: Canvas, base: float, centre: float, width: float) -> None:
    """A fluted column from the floor to the upper edge of the image."""
    rng = canvas.rng
    label, colour = ADE20K['column'], pick(rng, STONE)
    shape = canvas.rectangle(0, centre - width / 2, base, centre + width / 2)
    across = (canvas.grid(shape[0])[1] - centre) / np.float32(width) + 0.5
    flutes = 0.35 + 0.65 * triangle_wave(across * 4)
    field = np.clip(flutes * (1 - 0.6 * np.abs(across - 0.35)), 0, 1) + canvas.y[shape[0][0]] * 0
    canvas.paint(shape, tone(colour, field, 0.35, 1.4), label)
    foot = canvas.rectangle(base - 0.45 * width, centre - 0.7 * width, base, centre + 0.7 * width)
    canvas.paint(foot, colour * 0.85, label)
