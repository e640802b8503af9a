"""Images per second of whole classifiers at 224 x 224, next to those of timm and of the authors.

    python tools/bench/benchmark_classifiers.py                       # five classifiers, some minutes
    python tools/bench/benchmark_classifiers.py --only slak_t --mode infer --batch 4
    python tools/bench/benchmark_classifiers.py --threads 1 --clock cpu  # on a machine that is busy

InceptionNeXt is compared with timm's in eager mode, where timm is installed; the others with networks
of torch's own operators in the authors' formulation. Our classifiers are folded for inference, as a
user would do, and so are RecNeXt's rivals, whose authors do. Each pair gets the same weights, and
its scores, in training loss and gradients, must agree before anything is timed; both then run in turn,
each in a process of its own.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent)]

import benchmark_models  # noqa: E402
from benchmark_ops import CLOCKS, LAYOUTS, device  # noqa: E402
from contests import gain  # noqa: E402
from networks import Case  # noqa: E402

CASES = {
    'inceptionnext_a': ('inceptionnext', 'atto'),
    'inceptionnext_t': ('inceptionnext', 'tiny'),
    'slak_t': ('slak', 'tiny'),
    'dcls_convnext_t': ('dcls_convnext', 'tiny'),
    'recnext_m0': ('recnext', 'm0'),
    'recnext_m3': ('recnext', 'm3'),
    'recnext_a3': ('recnext', 'a3'),
}
USUAL = ('inceptionnext_t', 'slak_t', 'dcls_convnext_t', 'recnext_m3', 'recnext_a3')


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--only', choices=CASES, nargs='+', default=list(USUAL))
    parser.add_argument('--batch', type=int, default=2, help='images per step')
    parser.add_argument('--size', type=int, default=224, help='edge of the square image in pixels')
    parser.add_argument('--mode', choices=('train', 'infer', 'both'), default='both')
    parser.add_argument('--layout', choices=LAYOUTS, nargs='+', default=list(LAYOUTS))
    parser.add_argument('--amp', choices=('bfloat16', 'float16'), help='autocast dtype')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument('--clock', choices=CLOCKS, default='wall')
    parser.add_argument('--rounds', type=int, default=15)
    parser.add_argument('--out', type=Path, help='write all numbers to this JSON file')
    return parser.parse_args(arguments)


def settings(args: argparse.Namespace, name: str) -> argparse.Namespace:
    """The arguments of ``benchmark_models.py`` for one classifier."""
    family, arch = CASES[name]
    which = json.dumps(dict(family=family, arch=arch))
    words = ['classifiers:ours', '--kwargs', which]
    words += ['--rival', 'classifiers:authors', '--rival-kwargs', which]
    words += ['--input', f'{args.batch}x3x{args.size}x{args.size}', '--deploy']
    words += ['--mode', args.mode, '--layout', *args.layout, '--device', args.device]
    words += ['--threads', str(args.threads), '--clock', args.clock, '--rounds', str(args.rounds)]
    return benchmark_models.parse([*words, *(['--amp', args.amp] if args.amp else [])])


def time_classifier(args: argparse.Namespace, name: str) -> list[dict]:
    """Verify one pair and time it: a row per mode, or one with the reason for none."""
    if CASES[name][0] == 'inceptionnext' and importlib.util.find_spec('timm') is None:
        print(f'{name}: skipped, timm is not installed')
        return [dict(classifier=name, result='skipped: timm is not installed')]
    words = settings(args, name)
    return [row_of(name, words, case) for case in benchmark_models.cases(words)]


def row_of(name: str, words: argparse.Namespace, case: Case) -> dict:
    """One row, with the gain of our better layout over the better one of the rival."""
    print(f'{name}:')
    row = benchmark_models.time_case(words, case)
    results = row['results']
    sides = [[each for each in results if each.startswith(side)] for side in ('rival', 'ours')]
    keys = ('median_ms', 'min_ms')
    return dict(row, classifier=name, gain_over_rival={k: gain(results, *sides, k) for k in keys})


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse(arguments)
    torch.set_num_threads(args.threads)
    about = device()
    if args.device.startswith('cuda'):
        about['gpu'] = torch.cuda.get_device_name(args.device)
    print('  '.join(f'{key} {value}' for key, value in about.items()))
    rows = [row for name in args.only for row in time_classifier(args, name)]
    if args.out:
        kept = {key: value for key, value in vars(args).items() if key != 'out'}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(dict(device=about, settings=kept, rows=rows), indent=1))
        print(f'written to {args.out}')


if __name__ == '__main__':
    main()
