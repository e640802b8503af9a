"""All rows of the tables in docs/benchmarks.md, one after the other, without anyone at hand.

    python tools/bench/benchmark_tables.py --rounds 1 --out work_dirs/trial.json   # fills the caches
    python tools/bench/benchmark_tables.py --seconds 20                # on an idle machine, 25 minutes
    python tools/bench/benchmark_tables.py --only 224 --list           # which rows there are
    python tools/bench/benchmark_tables.py --render                    # the tables of a file again

The most telling rows come first. Each is written when it is done, and --resume leaves out those that the
file has. A row that fails is written with the reason, and the next one follows. Exported networks stay
in --kept, and torch keeps what it has compiled, so that a first call on a busy machine saves minutes of
the second.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent)]

from contests import about, contest, gain, gains  # noqa: E402
from networks import AUTHORS, Case  # noqa: E402

from mmlk.benchmark.process import first_line  # noqa: E402
from mmlk.cli.files import complete  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
NCHW, BOTH = ('ours contiguous',), ('ours contiguous', 'ours channels_last')
ENGINES = ('onnxruntime', 'openvino')
EAGER = ('rival contiguous', 'rival channels_last')
COMPILED = ('rival compile',)
NETWORKS = {
    'RecNeXt-M3': dict(model='RecNeXt', arch='m3'),
    'RecNeXt-A3': dict(model='RecNeXt', arch='a3'),
    'InceptionNeXt-T': dict(model='InceptionNeXt', kwargs=dict(output_norm=False)),
    'SLaK-T': dict(model='SLaK', kwargs=dict(output_norm=False)),
    'DCLS-ConvNeXt-T': dict(model='DCLSConvNeXt', kwargs=dict(output_norm=False)),
}
SEGMENTORS = {
    'Semantic FPN, RecNeXt-M3': 'fpn_recnext_m3_ade20k',
    'Semantic FPN, InceptionNeXt-T': 'fpn_inceptionnext_t_ade20k',
    'UperNet, InceptionNeXt-T': 'upernet_inceptionnext_t_ade20k',
}
GOALS = {
    # training steps: least gain over the authors' modules, and what is aimed at
    'RecNeXt-M3': (2.0, 2.5),
    'RecNeXt-A3': (1.7, 2.2),
    'SLaK-T': (3.2, 4.0),
    'DCLS-ConvNeXt-T': (7.0, 9.0),
}


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        table: Heading of its table.
        name: Network.
        case: What is timed.
        ours: Our sides, of which the first gives the figure.
        rivals: Sides whose fastest one we are compared with.
        others: Sides that are timed beside.
        goal: Least gain, and the one that is aimed at; None where none was set.
    """

    table: str
    name: str
    case: Case
    ours: tuple[str, ...]
    rivals: tuple[str, ...]
    others: tuple[str, ...] = ()
    goal: tuple[float, float] | None = None

    @property
    def key(self) -> str:
        """What tells the row from others in the file."""
        size = 'x'.join(str(each) for each in self.case.shape)
        return f'{self.table}: {self.name}, {size}, {self.case.threads} threads'


def rows(threads: int) -> list[Row]:
    """All rows, the most telling ones first."""
    return [
        *_against_engines(threads, 224),
        *_training(threads),
        *_segmentors(threads, list(SEGMENTORS)[:2]),
        *_against_engines(threads, 512),
        *_segmentors(threads, list(SEGMENTORS)[2:]),
        *_scaling(),
        *_large(threads),
    ]


def _case(name: str, shape: tuple[int, int, int, int], threads: int, **options) -> Case:
    return Case(
        shape=shape, rival=AUTHORS, deploy=True, threads=threads, **NETWORKS[name], **options
    )


def _against_engines(threads: int, side: int) -> Iterator[Row]:
    for name in NETWORKS:
        case = _case(name, (1, 3, side, side), threads, train=False)
        large = name in ('SLaK-T', 'DCLS-ConvNeXt-T')
        goal = (1.5, 2.0) if large else (1.0, 1.3)
        yield Row(f'Inference, {side} x {side}', name, case, BOTH, ENGINES, goal=goal)


def _training(threads: int) -> Iterator[Row]:
    title, shape = 'Training step', (2, 3, 160, 160)
    name = 'InceptionNeXt-T'
    case = _case(name, shape, threads, train=True)
    yield Row(title, name, case, BOTH, COMPILED, EAGER, goal=(1.1, 1.4))
    for name, goal in GOALS.items():
        case = _case(name, shape, threads, train=True)
        yield Row(title, name, case, BOTH, EAGER, goal=goal)


def _segmentors(threads: int, names: Sequence[str]) -> Iterator[Row]:
    for name in names:
        config = str(ROOT / 'configs' / f'{SEGMENTORS[name]}.py')
        case = Case(config, (1, 3, 512, 512), False, rival=AUTHORS, deploy=True, threads=threads)
        goal = (1.2, 1.6) if name.startswith('Semantic') else None
        yield Row('Segmentors, inference', name, case, NCHW, COMPILED, ('rival contiguous',), goal)


def _scaling() -> Iterator[Row]:
    for name in NETWORKS:
        for threads in (1, 2):
            case = _case(name, (1, 3, 224, 224), threads, train=False)
            yield Row('Inference, threads', name, case, NCHW, ('rival contiguous',))


def _large(threads: int) -> Iterator[Row]:
    for shape in ((1, 3, 800, 1333), (1, 3, 512, 2048)):
        for name in NETWORKS:
            case = _case(name, shape, threads, train=False)
            yield Row('Inference, large images', name, case, NCHW, ENGINES)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument('--rounds', type=int, default=15, help='most steps of each side of a row')
    parser.add_argument(
        '--seconds', type=float, default=20, help='a row ends after these and three rounds'
    )
    parser.add_argument('--minutes', type=float, default=float('inf'), help='no row begins later')
    parser.add_argument('--only', nargs='+', default=[''], help='rows whose name holds such a text')
    parser.add_argument('--resume', action='store_true', help='leave out rows that the file has')
    parser.add_argument('--list', action='store_true', help='print the names of the rows')
    parser.add_argument('--render', action='store_true', help='print the tables of the file')
    parser.add_argument('--kept', type=Path, default=ROOT / 'work_dirs/exported')
    parser.add_argument(
        '--out', type=Path, help='default: docs/benchmarks/tables_cpu_Nthreads.json'
    )
    args = parser.parse_args(arguments)
    args.out = args.out or ROOT / f'docs/benchmarks/tables_cpu_{args.threads}threads.json'
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse(arguments)
    chosen = [row for row in rows(args.threads) if any(text in row.key for text in args.only)]
    if args.list:
        print('\n'.join(row.key for row in chosen))
        return
    found = json.loads(args.out.read_text()) if args.out.exists() else {}
    if not args.render:
        args.kept.mkdir(parents=True, exist_ok=True)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        end = time.monotonic() + 60 * args.minutes
        for row in chosen:
            if time.monotonic() > end:
                print('the time is up')
                break
            if args.resume and 'results' in found.get(row.key, {}):
                continue
            print(row.key, flush=True)
            found[row.key] = measured(row, args)
            with complete(args.out) as partial:
                partial.write_text(json.dumps(found, indent=1) + '\n')
    print(tables(found))


def measured(row: Row, args: argparse.Namespace) -> dict:
    """The figures of one row as they stand in the file, or the reason why there are none."""
    facts = dict(table=row.table, name=row.name, goal=row.goal, **about(row.case))
    facts['settings']['model'] = Path(row.case.model).name  # no folder of this machine
    names = [*row.ours, *row.rivals, *row.others]
    try:
        results = contest(row.case, names, args.rounds, args.seconds, kept=args.kept)
    except Exception as error:  # one row must not cost the others
        return dict(facts, failed=first_line(error))
    return dict(
        facts,
        results=results,
        gains=gains(results),
        gain=gain(results, row.rivals, row.ours[:1]),
        gain_in_better_layouts=gain(results, row.rivals, row.ours),
        memory=gain(results, row.ours[:1], row.rivals, 'peak_mb'),
    )


def tables(found: dict[str, dict]) -> str:
    """The rows of a file as Markdown, a table for each heading."""
    headings: dict[str, list[str]] = {}
    for row in found.values():
        lines = headings.setdefault(row['table'], [])
        lines.append(_line(row))
    head = (
        '| network | images | threads | ours, ms | rivals, ms | gain | in the better layouts '
        '| memory, MB | goal (aim) |\n|---|---|---|---|---|---|---|---|---|'
    )
    return '\n\n'.join(
        '\n'.join((f'### {name}', '', head, *lines)) for name, lines in headings.items()
    )


def _line(row: dict) -> str:
    settings = row['settings']
    size = 'x'.join(str(each) for each in settings['shape'])
    start = f'| {row["name"]} | {size} | {settings["threads"]} '
    if 'failed' in row:
        return f'{start}| {row["failed"]} | | | | | |'
    results = row['results']
    ours = next(iter(results))
    rivals = '; '.join(
        f'{name} {_time(value)}' for name, value in results.items() if not name.startswith('ours')
    )
    memory = '; '.join(
        f'{name} {value["peak_mb"]:.0f}' for name, value in results.items() if 'peak_mb' in value
    )
    if row['memory']:
        memory = f'**{row["memory"]:.2f}x**: {memory}'
    goal = '{:.1f}x ({:.1f}x)'.format(*row['goal']) if row['goal'] else ''
    better = [_gain(row[key]) for key in ('gain', 'gain_in_better_layouts')]
    return (
        f'{start}| {_time(results[ours])} | {rivals} | **{better[0]}** | {better[1]} | {memory} '
        f'| {goal} |'
    )


def _gain(value: float | None) -> str:
    return f'{value:.2f}x' if value else 'not measured'


def _time(value: dict) -> str:
    if 'note' in value:
        return value['note']
    low, high = value['quartiles_ms']
    return f'{value["median_ms"]:.1f} [{low:.1f}-{high:.1f}]'


if __name__ == '__main__':
    main()
