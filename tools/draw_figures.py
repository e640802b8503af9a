"""Draw the figures of the documents: the operator of each family, and plots of the benchmarks.

    python tools/draw_figures.py                  # all, into docs/figures
    python tools/draw_figures.py speed --out /tmp

Every figure is an SVG with its text kept as text. The plots take their numbers from docs/benchmarks.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle

from mmlk.ops import dcls_kernel2d

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / 'docs/benchmarks'
BLUE, ORANGE, GREEN, RED, GREY = '#3b76af', '#e48f3a', '#5b9a5b', '#c0504d', '#d9d9d9'
CLASSIFIERS = {
    'inceptionnext_t': 'InceptionNeXt-T',
    'slak_t': 'SLaK-T',
    'dcls_convnext_t': 'DCLS-ConvNeXt-T',
    'recnext_m3': 'RecNeXt-M3',
    'recnext_a3': 'RecNeXt-A3',
}


def canvas(width: float, height: float, unit: float = 0.3) -> tuple[Figure, Axes]:
    """An empty drawing of ``width`` x ``height`` units without axes; y grows downwards."""
    figure, axes = plt.subplots(figsize=(width * unit, height * unit))
    axes.set(xlim=(0, width), ylim=(height, 0), aspect='equal')
    axes.axis('off')
    return figure, axes


def box(axes: Axes, x: float, y: float, width: float, height: float, colour: str, text: str = ''):
    axes.add_patch(Rectangle((x, y), width, height, facecolor=colour, edgecolor='black', lw=0.8))
    axes.text(x + width / 2, y + height / 2, text, ha='center', va='center', fontsize=8)


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    style = dict(arrowstyle='-|>', mutation_scale=8, color='black', lw=0.8)
    axes.add_patch(FancyArrowPatch(start, end, shrinkA=0, shrinkB=0, **style))


def cells(axes: Axes, x: float, y: float, rows: int, columns: int, side: float, colour: str):
    """A kernel of rows x columns taps; ``x``, ``y`` is its centre."""
    left, top = x - columns * side / 2, y - rows * side / 2
    for i in range(rows):
        for j in range(columns):
            place = left + j * side, top + i * side
            axes.add_patch(
                Rectangle(place, side, side, facecolor=colour, edgecolor='white', lw=0.5)
            )


def inceptionnext() -> Figure:
    figure, axes = canvas(30, 17)
    branches = (
        ('identity\n5/8 of the channels', GREY, None),
        ('3 x 3\n1/8', BLUE, (3, 3)),
        ('1 x 11\n1/8', ORANGE, (1, 11)),
        ('11 x 1\n1/8', GREEN, (11, 1)),
    )
    box(axes, 9, 0.3, 12, 1.4, 'white', 'map, C channels')
    for index, (text, colour, kernel) in enumerate(branches):
        x = 3.75 + 7.5 * index
        arrow(axes, (15, 1.7), (x, 4))
        if kernel:
            cells(axes, x, 7.5, *kernel, 0.55, colour)
        else:
            arrow(axes, (x, 4), (x, 10.9))
        axes.text(x, 11.8, text, ha='center', va='center', fontsize=8)
        arrow(axes, (x, 12.7), (15, 15.2))
    box(axes, 9, 15.2, 12, 1.4, 'white', 'concatenated, C channels')
    return figure


def slak() -> Figure:
    figure, axes = canvas(30, 13.2)
    generator, side, top = torch.Generator().manual_seed(0), 0.2, 1.5
    kernels = (
        (4.5, 51, 5, ORANGE, '51 x 5'),
        (13.5, 5, 51, GREEN, '5 x 51'),
        (20.8, 5, 5, BLUE, '5 x 5'),
    )
    middle = top + 51 * side / 2
    for x, rows, columns, colour, text in kernels:
        left, upper = x - columns * side / 2, middle - rows * side / 2
        kept = torch.rand(rows, columns, generator=generator) < 0.6
        axes.add_patch(
            Rectangle(
                (left, upper), columns * side, rows * side, facecolor='white', edgecolor='black'
            )
        )
        for i, j in kept.nonzero().tolist():
            place = left + j * side, upper + i * side
            axes.add_patch(Rectangle(place, side, side, facecolor=colour, lw=0))
        axes.text(x, top + 51 * side + 1, f'{text}, batch norm', ha='center', fontsize=8)
    for x in (7.2, 19.5):
        axes.text(x, middle, '+', ha='center', va='center', fontsize=14)
    arrow(axes, (22, middle), (24, middle))
    box(axes, 24.2, middle - 1.2, 5.4, 2.4, 'white', 'sum of the\nthree branches')
    caption = 'one map, every channel by itself; white taps are zero (40 %)'
    axes.text(15, 0.5, caption, ha='center', fontsize=8)
    return figure


def dcls_convnext() -> Figure:
    generator, size = torch.Generator().manual_seed(3), 17
    positions = (3.2 * torch.randn(2, 1, 1, 34, generator=generator)).clamp(-8, 8)
    weight = torch.randn(1, 1, 34, generator=generator)
    kernel = dcls_kernel2d(weight, positions, kernel_size=size, version='v0')[0, 0]
    figure, axes = canvas(44, 20, 0.22)
    limit = kernel.abs().max().item()
    colours = matplotlib.colormaps['RdBu_r']
    for left in (1, 25):
        box(axes, left, 2, size, size, 'white')
    for i, j in kernel.nonzero().tolist():
        shade = colours(0.5 + 0.5 * kernel[i, j].item() / limit)
        axes.add_patch(Rectangle((25 + j, 2 + i), 1, 1, facecolor=shade, edgecolor='white', lw=0.3))
    for (row, column), value in zip(positions.flatten(1).T.tolist(), weight.flatten().tolist()):
        shade = colours(0.5 + 0.5 * value / limit)
        axes.plot(9.5 + column, 10.5 + row, 'o', ms=5, mfc=shade, mec='black', mew=0.5)
    arrow(axes, (18.5, 10.5), (24.5, 10.5))
    axes.text(9.5, 1, '34 weights at learnt positions', ha='center', fontsize=8)
    axes.text(33.5, 1, 'their 17 x 17 kernel', ha='center', fontsize=8)
    axes.text(21.5, 9.3, 'each spreads over\nits four cells', ha='center', fontsize=7)
    return figure


def recnext() -> Figure:
    figure, axes = canvas(36, 19)
    sides, lefts = (7.0, 3.5, 1.75), (1, 14.5, 25)
    centres = [left + side / 2 for left, side in zip(lefts, sides)]
    for level, (left, side, x) in enumerate(zip(lefts, sides, centres)):
        box(axes, left, 4.5 - side / 2, side, side, BLUE if level else GREY, '' if level else 'map')
        box(axes, x - 2.2, 9.6, 4.4, 1.8, ORANGE, '5 x 5')
        arrow(axes, (x, 4.5 + side / 2), (x, 9.6))
        box(axes, x - 1, 14.5, 2, 2, 'white', '+' if level < 2 else '')
        arrow(axes, (x, 11.4), (x, 14.5))
    for level in range(2):
        x = lefts[level] + sides[level]
        arrow(axes, (x, 4.5), (lefts[level + 1], 4.5))
        axes.text(
            (x + lefts[level + 1]) / 2, 3.3, 'shared 5 x 5\nstride 2', ha='center', fontsize=8
        )
        arrow(axes, (centres[level + 1] - 1, 15.5), (centres[level] + 1, 15.5))
        middle = (centres[level] + centres[level + 1]) / 2
        axes.text(
            middle, 17, 'twice as large\n(interpolated)', ha='center', va='center', fontsize=8
        )
    arrow(axes, (centres[0], 16.5), (centres[0], 18.5))
    axes.text(31.5, 4.5, '1 to 4 levels', ha='center', va='center', fontsize=8)
    axes.text(31.5, 10.5, 'a kernel for\neach level', ha='center', va='center', fontsize=8)
    return figure


def network_gains() -> dict[str, tuple[float, float]]:
    """Name of a classifier -> gain of medians over the authors' formulation, training and inference."""
    rows = json.loads((BENCHMARKS / 'classifiers_cpu_2threads.json').read_text())['rows']
    gains = {(row['classifier'], row['mode']): row['gain_over_rival']['median_ms'] for row in rows}
    return {name: (gains[key, 'train'], gains[key, 'infer']) for key, name in CLASSIFIERS.items()}


def bars(names: list[str], series: dict[str, list[float]], title: str, log: bool) -> Figure:
    """Horizontal bars with their values; 1 is the other side's time."""
    height = 0.8 / len(series)
    figure, axes = plt.subplots(figsize=(7, 0.35 * len(names) * len(series) + 0.9))
    for index, ((label, values), colour) in enumerate(zip(series.items(), (BLUE, ORANGE))):
        places = [place + index * height for place in range(len(names))]
        drawn = axes.barh(places, values, height, color=colour, label=label)
        axes.bar_label(drawn, [f'{value:.2f}x' for value in values], padding=3, fontsize=8)
    axes.axvline(1, color='black', lw=0.8)
    axes.set_yticks([place + 0.4 - height / 2 for place in range(len(names))], names, fontsize=9)
    axes.invert_yaxis()
    axes.set_title(title, fontsize=10)
    axes.spines[['top', 'right']].set_visible(False)
    axes.margins(x=0.12)
    if log:
        axes.set_xscale('log')
        ticks = (1, 2, 5, 10, 20, 50, 100)
        axes.set_xticks(ticks, [f'{each}x' for each in ticks])
    if len(series) > 1:
        axes.legend(fontsize=8, loc='lower right', frameon=False)
    return figure


def speed() -> Figure:
    gains = network_gains()
    series = {
        'training step': [train for train, _ in gains.values()],
        'inference, folded': [infer for _, infer in gains.values()],
    }
    title = "Times faster than the authors' formulation (CPU, 2 threads, 224 x 224)"
    return bars(list(gains), series, title, log=False)


def operator_gains() -> dict[str, float]:
    """Operator and map -> gain over the better of torch's two layouts, forward and backward."""
    rows = json.loads((BENCHMARKS / 'operators_cpu_2threads.json').read_text())['rows']
    return {
        f'{row["case"]}, {"x".join(map(str, row["shape"]))}': row['gain_over_better_native']
        for row in rows
    }


def operators() -> Figure:
    gains = operator_gains()
    title = "Times faster than torch's better layout (CPU, 2 threads, forward and backward)"
    return bars(list(gains), {'': list(gains.values())}, title, log=True)


FIGURES: dict[str, Callable[[], Figure]] = {
    draw.__name__: draw for draw in (inceptionnext, slak, dcls_convnext, recnext, speed, operators)
}


def write(name: str, folder: Path) -> Path:
    """Draw one figure into ``folder`` as ``<name>.svg``; equal calls write equal bytes."""
    with matplotlib.rc_context({'svg.fonttype': 'none', 'svg.hashsalt': name}):
        figure = FIGURES[name]()
        path = folder / f'{name}.svg'
        figure.savefig(path, bbox_inches='tight', metadata=dict(Date=None, Creator=None))
        plt.close(figure)
    return path


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('names', nargs='*', help='which (default: all)')
    parser.add_argument('--out', type=Path, default=ROOT / 'docs/figures', metavar='FOLDER')
    args = parser.parse_args(argv)
    unknown = sorted(set(args.names) - set(FIGURES))
    if unknown:
        parser.error(f'{", ".join(unknown)}: not one of {", ".join(FIGURES)}')
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.names or FIGURES:
        print(write(name, args.out))


if __name__ == '__main__':
    main()
