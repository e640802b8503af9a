"""Images per second and memory of a backbone or a whole config, next to rivals.

    python tools/bench/benchmark_models.py InceptionNeXt --input 1x3x224x224 1x3x512x512 --mode infer \\
        --deploy --rival authors --against eager compile onnxruntime openvino
    python tools/bench/benchmark_models.py configs/fpn_recnext_m3_ade20k.py --input 1x3x512x512 \\
        --deploy --rival authors --against compile
    python tools/bench/benchmark_models.py RecNeXt --arch m3 --input 1x3x224x224 4x3x224x224 \\
        --threads 1 2 --plot cost.svg

Images are NCHW, as pipelines give them, unless --layout says otherwise. The rival `authors` is timm's
InceptionNeXt or the authors' formulation of the other families, in a whole config under the same heads;
ONNX Runtime and OpenVINO run our exported network. Every side has a process of its own and our weights;
its outputs, in training the loss and gradients of a step, must agree before anything is timed. The sides
take their steps in turn.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent)]

from benchmark_ops import CLOCKS, LAYOUTS, device  # noqa: E402
from contests import RIVALS, about, contest, gains, sides  # noqa: E402
from networks import AUTHORS, Case  # noqa: E402


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument(
        'model', help="backbone type ('InceptionNeXt'), config file, or 'module:factory'"
    )
    parser.add_argument('--arch', default='tiny', help='arch of the backbone type')
    parser.add_argument(
        '--kwargs', type=json.loads, default={}, help='further arguments of the backbone type, JSON'
    )
    parser.add_argument(
        '--input',
        nargs='+',
        default=['2x3x160x160'],
        help='batch x channels x height x width; several are timed one after the other',
    )
    parser.add_argument('--mode', choices=('train', 'infer', 'both'), default='both')
    parser.add_argument('--layout', choices=LAYOUTS, nargs='+', default=['contiguous'])
    parser.add_argument(
        '--rival', help=f"'{AUTHORS}', or a 'module:factory' that builds a network to compare with"
    )
    parser.add_argument('--rival-kwargs', type=json.loads, default={}, help='its arguments, JSON')
    parser.add_argument(
        '--against',
        choices=RIVALS,
        nargs='+',
        default=['eager'],
        help='forms of the rival, and engines that run our exported network in inference',
    )
    parser.add_argument('--deploy', action='store_true', help='time folded forms in inference')
    parser.add_argument(
        '--compile', action='store_true', help='time our side under torch.compile as well'
    )
    parser.add_argument('--amp', choices=('bfloat16', 'float16'), help='autocast dtype')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--threads', type=int, nargs='+', default=[torch.get_num_threads()])
    parser.add_argument(
        '--clock',
        choices=CLOCKS,
        default='wall',
        help="'cpu' is processor time, for a busy machine and one thread",
    )
    parser.add_argument('--rounds', type=int, default=15)
    parser.add_argument(
        '--seconds', type=float, default=float('inf'), help='end a run early, after three rounds'
    )
    parser.add_argument('--kept', type=Path, help='folder that keeps exported files between calls')
    parser.add_argument('--out', type=Path, help='write all numbers to this JSON file')
    parser.add_argument('--table', type=Path, help='write a Markdown table to this file')
    parser.add_argument('--plot', type=Path, help='draw cost against resolution and batch')
    args = parser.parse_args(arguments)
    for each in args.input:
        if len(each.split('x')) != 4 or not all(part.isdecimal() for part in each.split('x')):
            parser.error(f'--input {each}: batch x channels x height x width, as in 2x3x160x160')
    if args.clock == 'cpu' and max(args.threads) > 1:
        parser.error('--clock cpu sees one thread only, use --threads 1')
    return args


def cases(args: argparse.Namespace) -> list[Case]:
    """Every size, mode and number of threads that the arguments ask for."""
    return [
        Case(
            model=args.model,
            shape=tuple(int(part) for part in size.split('x')),
            train=mode == 'train',
            arch=args.arch,
            kwargs=args.kwargs,
            rival=args.rival,
            rival_kwargs=args.rival_kwargs,
            deploy=args.deploy,
            threads=threads,
            device=args.device,
            amp=args.amp,
        )
        for size in args.input
        for mode in ('train', 'infer')
        if args.mode in (mode, 'both')
        for threads in args.threads
    ]


def time_case(args: argparse.Namespace, case: Case) -> dict:
    """Time one case and print it; a row of the JSON file."""
    names = sides(case, args.against, args.layout, args.compile)
    results = contest(case, names, args.rounds, args.seconds, args.clock, args.kept)
    row = dict(
        model=case.model,
        mode='train' if case.train else 'infer',
        input='x'.join(str(each) for each in case.shape),
        threads=case.threads,
        results=results,
        gains=gains(results),
    )
    print('\n'.join(described(row)), flush=True)
    return row


def described(row: dict) -> list[str]:
    """Lines for the screen."""
    mode, lines = row['mode'], [f'{row["input"]}, {row["threads"]} threads']
    for name, value in row['results'].items():
        if 'note' in value:
            lines.append(f'{mode:<6} {name:<22} {value["note"]}')
            continue
        low, high = value['quartiles_ms']
        lines.append(
            f'{mode:<6} {name:<22} {value["median_ms"]:8.1f} ms [{low:.1f}-{high:.1f}]  min '
            f'{value["min_ms"]:.1f}  {value["images_per_second"]:7.2f} img/s  '
            f'{value["peak_mb"]:6.0f} MB  off by {value["deviation"]:.0e}'
        )
    lines += [f'{mode:<6} gain over {name}: {value:.2f}x' for name, value in row['gains'].items()]
    return lines


def markdown(rows: list[dict]) -> str:
    """One line for each side of each row."""
    lines = [
        '| network | input | threads | run | side | median, ms | memory, MB | our gain |',
        '|---|---|---|---|---|---|---|---|',
    ]
    for row in rows:
        head = f'| {row["model"]} | {row["input"]} | {row["threads"]} | {row["mode"]} '
        for name, value in row['results'].items():
            if 'note' in value:
                lines.append(f'{head}| {name} | {value["note"]} | | |')
                continue
            low, high = value['quartiles_ms']
            gained = row['gains'].get(name)
            lines.append(
                f'{head}| {name} | {value["median_ms"]:.1f} [{low:.1f}-{high:.1f}] '
                f'| {value["peak_mb"]:.0f} | {f"{gained:.2f}x" if gained else ""} |'
            )
    return '\n'.join(lines) + '\n'


def plot(rows: list[dict], path: Path) -> None:
    """Milliseconds per image against pixels, one line per side, batch, mode and number of threads."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    lines: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        n, _, height, width = (int(each) for each in row['input'].split('x'))
        for name, value in row['results'].items():
            if 'median_ms' in value:
                label = f'{row["mode"]}, {name}, batch {n}, {row["threads"]} threads'
                lines.setdefault(label, []).append((height * width, value['median_ms'] / n))
    figure, axes = plt.subplots(figsize=(8, 5))
    for label, points in lines.items():
        axes.plot(*zip(*sorted(points)), marker='o', label=label)
    axes.set(xscale='log', yscale='log', xlabel='pixels of an image', ylabel='ms per image')
    axes.legend(fontsize=7)
    figure.savefig(path, bbox_inches='tight')
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse(arguments)
    if args.kept:
        args.kept.mkdir(parents=True, exist_ok=True)
    print('  '.join(f'{key} {value}' for key, value in device().items()))
    rows = []
    for case in cases(args):
        rows.append(time_case(args, case))
        if args.out:  # after each: what is measured is not lost
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(json.dumps({**about(case), 'rows': rows}, indent=1))
    if args.table:
        args.table.write_text(markdown(rows))
    if args.plot:
        plot(rows, args.plot)


if __name__ == '__main__':
    main()
