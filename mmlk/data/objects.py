"""Things: what is counted, carries a mask of its own and moves in front of the scenery.

Every function paints one object that stands at height ``base`` of the image and is ``size`` pixels
high, and records it as an instance of its COCO category.
"""

from __future__ import annotations

import numpy as np

from mmlk.data.canvas import Canvas, noise, pick, tone, triangle_wave
from mmlk.data.classes import ADE20K

SKIN = [(225, 185, 155), (190, 140, 105), (120, 80, 60)]
CLOTH = [
    (190, 50, 50),
    (50, 80, 160),
    (60, 130, 80),
    (220, 200, 80),
    (230, 230, 225),
    (50, 50, 55),
    (150, 90, 150),
    (200, 120, 60),
]
LACQUER = [
    (180, 40, 40),
    (40, 70, 150),
    (225, 225, 225),
    (40, 42, 46),
    (190, 190, 60),
    (60, 120, 90),
]
BALL = [(225, 120, 40), (235, 235, 230), (210, 60, 60), (230, 210, 60), (60, 120, 210)]
WOOD = [(228, 222, 210), (78, 48, 38), (150, 62, 44), (72, 112, 118)]


def shadow(canvas: Canvas, base: float, centre: float, half: float) -> None:
    """A dark patch on the ground below an object."""
    canvas.shade(canvas.ellipse(base, centre, max(1.5, 0.22 * half), half), 0.6)


def person(canvas: Canvas, base: float, centre: float, size: float) -> None:
    """A standing figure: legs in one colour, torso and arms in another, head and hair."""
    rng = canvas.rng
    shadow(canvas, base, centre, 0.2 * size)
    instance, label = canvas.begin('person'), ADE20K['person']
    skin, shirt, trousers = pick(rng, SKIN), pick(rng, CLOTH), pick(rng, CLOTH) * 0.75
    stride = (0.04 + 0.05 * rng.random()) * size
    swing = (0.02 + 0.07 * rng.random()) * size
    hip, shoulder, thick = base - 0.48 * size, base - 0.82 * size, 0.1 * size

    def limb(y0: float, x0: float, y1: float, x1: float, width: float, colour) -> None:
        canvas.paint(canvas.stroke(y0, x0, y1, x1, width), colour, label, instance)

    limb(hip - 2, centre - 0.03 * size, base, centre - stride, thick, trousers)
    limb(hip - 2, centre + 0.03 * size, base, centre + stride, thick, trousers * 0.9)
    for side in (-1, 1):
        x = centre + side * 0.11 * size
        limb(shoulder + 2, x, hip + 0.02 * size, x + side * swing, 0.07 * size, shirt * 0.85)
        hand = canvas.ellipse(hip + 0.03 * size, x + side * swing, 0.035 * size, 0.035 * size)
        canvas.paint(hand, skin, label, instance)
    torso = canvas.polygon(
        [
            (shoulder, centre - 0.12 * size),
            (shoulder, centre + 0.12 * size),
            (hip + 0.02 * size, centre + 0.09 * size),
            (hip + 0.02 * size, centre - 0.09 * size),
        ]
    )
    y, x = canvas.grid(torso[0])
    stripes = 0.75 * (triangle_wave(y / np.float32(max(4.0, 0.08 * size))) > 0.5) + x * 0
    field = stripes if rng.random() < 0.4 else np.full_like(stripes, 0.6)
    canvas.paint(torso, tone(shirt, field, 0.7, 1.1), label, instance)
    head = base - 0.91 * size
    canvas.paint(canvas.ellipse(head, centre, 0.09 * size, 0.07 * size), skin, label, instance)
    hair = canvas.ellipse(head - 0.045 * size, centre, 0.05 * size, 0.072 * size)
    canvas.paint(hair, pick(rng, [(40, 30, 25), (110, 75, 40), (190, 160, 100)]), label, instance)
    canvas.end(instance)


def car(canvas: Canvas, base: float, centre: float, size: float) -> None:
    """A car from the side: body, cabin with windows, two wheels, lights."""
    rng = canvas.rng
    half = size * (1.15 + 0.25 * rng.random())
    shadow(canvas, base, centre, 1.05 * half)
    instance, label = canvas.begin('car'), ADE20K['car']
    colour, side = pick(rng, LACQUER), 1 if rng.random() < 0.5 else -1

    def part(points, paint) -> None:
        corners = [(base - up * size, centre + side * along * half) for up, along in points]
        canvas.paint(canvas.polygon(corners), paint, label, instance)

    part([(0.55, -0.75), (1, -0.5), (1, 0.2), (0.55, 0.55)], colour * 0.9)
    part([(0.6, -0.62), (0.92, -0.44), (0.92, -0.14), (0.6, -0.14)], (55, 70, 85))
    part([(0.6, -0.07), (0.92, -0.07), (0.92, 0.16), (0.6, 0.42)], (70, 85, 100))
    part([(0.18, -1), (0.55, -0.97), (0.6, 0.5), (0.45, 0.96), (0.18, 1)], colour)
    part([(0.18, -1), (0.27, -1), (0.27, 1), (0.18, 1)], colour * 0.55)
    part([(0.35, 0.88), (0.45, 0.88), (0.45, 0.98), (0.35, 0.99)], (250, 240, 190))
    part([(0.38, -1), (0.5, -0.98), (0.5, -0.9), (0.38, -0.9)], (200, 30, 30))
    for along in (-0.6, 0.6):
        hub = base - 0.2 * size, centre + side * along * half
        for radius, paint in ((0.2, (28, 28, 30)), (0.1, (170, 172, 175))):
            wheel = canvas.ellipse(*hub, radius * size, radius * size)
            canvas.paint(wheel, paint, label, instance)
    canvas.end(instance)


def ball(canvas: Canvas, base: float, centre: float, size: float) -> None:
    """A shaded ball with a seam or patches."""
    rng = canvas.rng
    radius = size / 2
    shadow(canvas, base, centre, 0.9 * radius)
    instance = canvas.begin('sports ball')
    shape = canvas.ellipse(base - radius, centre, radius, radius)
    y, x = canvas.grid(shape[0])
    dy, dx = (y - base + radius) / radius, (x - centre) / radius
    light = np.clip(1 - 0.55 * ((dx + 0.4) ** 2 + (dy + 0.45) ** 2), 0.1, 1)
    first, second = pick(rng, BALL), pick(rng, [(40, 40, 45), (235, 235, 235)])
    if rng.random() < 0.5:
        mark = np.abs(dy - 0.6 * dx * dx + 0.2) < 0.16
    else:
        mark = triangle_wave(dx * 0.9 + 0.2) * triangle_wave(dy * 0.9 + 0.3) > 0.45
    colours = np.where(mark[..., None], second, first) * light[..., None]
    canvas.paint(shape, colours, ADE20K['ball'], instance)
    canvas.end(instance)


def stop_sign(canvas: Canvas, base: float, centre: float, size: float) -> None:
    """An octagonal sign on a post; the plate alone is the instance, as in COCO."""
    rng = canvas.rng
    label, radius = ADE20K['signboard'], size * (0.15 + 0.06 * rng.random())
    post = max(2.0, 0.03 * size)
    canvas.paint(
        canvas.rectangle(base - size + radius, centre - post, base, centre + post),
        (120, 122, 125),
        label,
    )
    instance, cy = canvas.begin('stop sign'), base - size + radius
    red = pick(rng, [(195, 30, 35), (170, 35, 40)], 10)
    for scale, colour in ((1.0, (235, 235, 232)), (0.86, red)):
        reach, cut = scale * radius, 0.42 * scale * radius
        octagon = canvas.polygon(
            [
                (cy - reach, centre - cut),
                (cy - reach, centre + cut),
                (cy - cut, centre + reach),
                (cy + cut, centre + reach),
                (cy + reach, centre + cut),
                (cy + reach, centre - cut),
                (cy + cut, centre - reach),
                (cy - cut, centre - reach),
            ]
        )
        canvas.paint(octagon, colour, label, instance)
    text = canvas.rectangle(
        cy - 0.22 * radius, centre - 0.6 * radius, cy + 0.22 * radius, centre + 0.6 * radius
    )
    letters = triangle_wave(canvas.grid(text[0])[1] / np.float32(max(3.0, 0.3 * radius))) > 0.35
    canvas.paint((text[0], text[1] & letters), (240, 240, 236), label, instance)
    canvas.end(instance)


def table(canvas: Canvas, base: float, centre: float, size: float) -> None:
    """A table with a thick top in perspective and four legs; floor shows between the legs."""
    rng = canvas.rng
    half = size * (0.75 + 0.35 * rng.random())
    shadow(canvas, base, centre, half)
    instance, label, colour = canvas.begin('dining table'), ADE20K['table'], pick(rng, WOOD)
    top, leg = base - size, max(3.0, 0.09 * size)
    for along, foot in ((-0.72, 0.22), (0.72, 0.22), (-0.92, 0.0), (0.92, 0.0)):
        x = centre + along * half
        post = canvas.rectangle(top + 0.2 * size, x - leg, base - foot * size, x + leg)
        canvas.paint(post, colour * (0.75 if foot == 0 else 0.55), label, instance)
    plate = canvas.polygon(
        [
            (top, centre - 0.78 * half),
            (top, centre + 0.78 * half),
            (top + 0.26 * size, centre + half),
            (top + 0.26 * size, centre - half),
        ]
    )
    y, x = canvas.grid(plate[0])
    grain = noise(rng, y / np.float32(1.5), x / np.float32(16))
    canvas.paint(plate, tone(colour, grain, 0.85, 1.2), label, instance)
    rim = canvas.rectangle(top + 0.26 * size, centre - half, top + 0.42 * size, centre + half)
    canvas.paint(rim, colour * 0.7, label, instance)
    canvas.end(instance)
