"""Compare a training log with a published curve, value by value, and say where it leaves it.

    python tools/compare_curve.py work_dirs/fpn_recnext_m3_ade20k
    python tools/compare_curve.py work_dirs/fpn_recnext_m3_ade20k --keys loss mIoU --out curve.png
    python tools/compare_curve.py work_dirs/mine --reference work_dirs/older --at 1000 4000

The log is a work folder, whose runs are merged (where a resumed run goes over the same iterations as
an earlier one, the later run counts), or a file: MMEngine's scalars.json, an MMCV 1.x *.log.json, or
the *.txt of a trainer that writes one JSON object per epoch. Curves of RecNeXt's authors come with this
package; other authors published no logs, and --reference takes any log. Losses are compared as means
over the same iterations as the published ones; the published runs are single, so the tolerances are
judgement, not measured spread. Exit status: 0 on the curve, 1 where it leaves it, 2 where nothing could
be compared.
"""

from __future__ import annotations

import argparse
import sys
from difflib import get_close_matches
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmlk.analysis.curves import Row, as_run, check_keys, compare, draw, published_runs
from mmlk.analysis.logs import find_logs, read_log
from mmlk.cli.files import complete

REFERENCE_WINDOW = 1000
"""Iterations that losses of another log are averaged over, unless an epoch is known."""


def choose_run(
    runs: dict, reference: str | None, path: Path, per_epoch: int | None
) -> tuple[str, dict]:
    """Name and curve of the run named by the caller, or by a folder on the way to the log.

    Raises:
        ValueError: If neither names a published run, or a log that can be read.
        FileNotFoundError: If a folder holds no log.
    """
    if reference and reference not in runs and Path(reference).exists():
        log = read_log(find_logs(Path(reference)), per_epoch, per_epoch)
        run = as_run(log, '; '.join(log.files), per_epoch or REFERENCE_WINDOW)
        return reference, dict(run, per_epoch=per_epoch)
    parts = reversed(path.resolve().parts)
    name = reference or next((part for part in parts if part in runs), None)
    if name is None:
        raise ValueError(
            f'choose_run: no folder on the way to {path} has the name of a published run; '
            'pass --reference NAME, or --reference LOG to compare with another log'
        )
    if name not in runs:
        close = ', '.join(get_close_matches(name, runs, n=4, cutoff=0.4) or runs)
        raise ValueError(
            f'choose_run: reference {name!r} is neither a log nor a published run; close to it: {close}'
        )
    return name, runs[name]


def report(rows: list[Row], per_epoch: int | None) -> str:
    """The compared values, and a sentence on where the log first leaves each curve."""
    lines = [f'{"step":>8}  {"quantity":<28}{"published":>11}{"log":>10}{"change":>10}']
    for row in rows:
        if row.found is not None:
            change = f'{100 * (row.found / row.published - 1):+.1f}%' if row.published else ''
            epoch = row.step / per_epoch if per_epoch else 0
            mark = f'  epoch {epoch:g}' if epoch and epoch == int(epoch) else ''
            lines.append(
                f'{row.step:>8g}  {row.name:<28}{"~" * row.between:>1}{row.published:>10.4g}'
                f'{row.found:>10.4g}{change:>10}{mark}{"  <-- off" if row.off else ""}'
            )
    compared = [row for row in rows if row.off is not None]
    last = max((row.step for row in compared), default=0)
    beyond = sum(row.step > last for row in rows)
    if any(row.between for row in compared):
        lines.append('~ interpolated between published values or between evaluations')
    lines.append(
        f'{len(compared)} values compared up to step {last:g}, {beyond} lie beyond the log'
    )
    for name in dict.fromkeys(row.name for row in compared):
        off = [row for row in compared if row.name == name and row.off]
        if off:
            first = off[0]
            lines.append(
                f'{name} leaves the published curve at step {first.step:g}: '
                f'{first.found:.4g} against {first.published:.4g}; '
                f'{len(off)} values off'
            )
        else:
            lines.append(f'{name} follows the published curve')
    return '\n'.join(lines)


def steps_of(args: argparse.Namespace, per_epoch: int | None) -> list[float] | None:
    """The steps that the caller asked for, None for the published ones.

    Raises:
        ValueError: If epochs are asked for and nobody knows how long one is.
    """
    if args.at_epoch and not per_epoch:
        raise ValueError('--at-epoch: this curve is counted in iterations; use --at')
    epochs = [epoch * per_epoch for epoch in args.at_epoch or ()]
    return sorted({*(args.at or ()), *epochs}) or None


def parse_args(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('log', type=Path, help='work folder or log file')
    parser.add_argument(
        '--reference', help='name of the published run (its config without .py), or another log'
    )
    parser.add_argument('--keys', nargs='+', help='losses and metrics to compare (default: all)')
    parser.add_argument(
        '--at',
        nargs='+',
        type=float,
        metavar='ITERATION',
        help='compare there (default: everywhere)',
    )
    parser.add_argument(
        '--at-epoch', nargs='+', type=float, metavar='EPOCH', help='the same in epochs'
    )
    parser.add_argument('--out', type=Path, help='picture to write, such as curve.png')
    parser.add_argument(
        '--iterations-per-epoch',
        type=int,
        help='of the log, for epoch-based training (default: as the text log beside it says, else '
        'as published)',
    )
    parser.add_argument(
        '--loss-tolerance',
        type=float,
        default=0.15,
        help='relative, of 50-iteration losses (default: %(default)s)',
    )
    parser.add_argument(
        '--metric-tolerance', type=float, default=1.5, help='in points (default: %(default)s)'
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    args = parse_args(arguments)
    try:
        files = find_logs(args.log)
        name, run = choose_run(
            published_runs(), args.reference, args.log, args.iterations_per_epoch
        )
        per_epoch = run.get('per_epoch')
        log = read_log(files, per_epoch, args.iterations_per_epoch)
        if args.keys:
            check_keys(args.keys, run, log)
        at = steps_of(args, per_epoch)
        if args.out:
            with complete(args.out) as partial:
                draw(log, run, f'{args.log} over {name}', args.keys).savefig(partial, dpi=120)
    except (OSError, ValueError) as error:
        print(f'compare_curve: {error}', file=sys.stderr)
        return 2
    rows = list(
        compare(log, run, args.loss_tolerance, args.metric_tolerance, at=at, keys=args.keys)
    )
    print('\n'.join(log.files))
    print(f'against {name}: {run["source"]}')
    print(report(rows, per_epoch))
    if args.out:
        print(f'wrote {args.out}')
    if all(row.off is None for row in rows):
        return 2
    return 1 if any(row.off for row in rows) else 0


if __name__ == '__main__':
    sys.exit(main())
