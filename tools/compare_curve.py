"""Compare a training log with a published curve, anchor by anchor, and say where it leaves it.

    python tools/compare_curve.py work_dirs/fpn_recnext_m3_ade20k

The log is a work directory, MMEngine's ``scalars.json``, or an MMCV 1.x ``*.log.json``. Losses are
compared as means over the same iterations as the published ones; the published runs are single, so
the tolerances are judgement, not measured spread. Exit status: 0 on the curve, 1 where it leaves
it, 2 where nothing could be compared.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from mmlk.configs import config_root

CURVES = 'metafiles/recnext_curves.json'
POINT_WINDOW = 50


class Log(NamedTuple):
    """A training log: per name, rising (step, value) pairs; metrics in per cent."""

    losses: dict[str, list[tuple[int, float]]]
    metrics: dict[str, list[tuple[int, float]]]


class Row(NamedTuple):
    """One anchor beside the log's value; ``off`` is None where the log has none."""

    step: int
    name: str
    published: float
    found: float | None
    off: bool | None


def find_log(path: Path) -> Path:
    """The log file of a work directory: the longest of its ``scalars.json``; a file is itself.

    Raises:
        FileNotFoundError: If there is none.
    """
    if path.is_file():
        return path
    found = [*path.rglob('scalars.json'), *path.rglob('*.log.json')]
    if not found:
        raise FileNotFoundError(f'find_log: no scalars.json or *.log.json below {str(path)!r}')
    return max(found, key=lambda each: each.stat().st_size)


def read_log(path: Path, iterations_per_epoch: int = 7330) -> Log:
    """Read MMEngine's or MMCV 1.x's JSON lines.

    Args:
        path: File with one JSON object per line.
        iterations_per_epoch: Turns the epochs of a detection log into iterations.
    """
    losses, metrics, last = {}, {}, 0
    for line in path.read_text().splitlines():
        entry = json.loads(line)
        if 'step' not in entry and 'mode' not in entry:
            continue  # header of an MMCV log
        step = _step(entry, last, iterations_per_epoch)
        if 'loss' in entry:
            last = step
        # MMEngine gives segmentation metrics in per cent and everything else as fractions.
        percent = 'step' in entry and 'mIoU' in entry
        for name, value in entry.items():
            name = name.removeprefix('coco/')
            if re.fullmatch(r'loss(_\w+)?', name):
                losses.setdefault(name, []).append((step, float(value)))
            elif re.fullmatch(r'mIoU|aAcc|mAcc|(bbox|segm)_mAP(_50|_75)?', name):
                metrics.setdefault(name, []).append((step, value if percent else 100 * value))
    return Log(
        *({name: sorted(pairs) for name, pairs in each.items()} for each in (losses, metrics))
    )


def _step(entry: dict, last: int, iterations_per_epoch: int) -> int:
    """Iteration of a log entry, counted from the start; ``last`` is that of the last loss."""
    if 'step' in entry:  # MMEngine counts epochs in the metrics of epoch-based loops
        return entry['step'] * (iterations_per_epoch if 'coco/bbox_mAP' in entry else 1)
    if 'mIoU' in entry:  # MMCV writes the number of validation batches here
        return last
    if 'decode.loss_ce' in entry:
        return entry['iter']
    if 'bbox_mAP' in entry:
        return entry['epoch'] * iterations_per_epoch
    return (entry['epoch'] - 1) * iterations_per_epoch + entry['iter']


def value_at(pairs: list[tuple[int, float]], step: int, window: int) -> float | None:
    """Mean of the log's values in the ``window`` iterations up to ``step``; None beyond its end."""
    if not pairs or pairs[-1][0] < step:
        return None
    inside = [value for at, value in pairs if step - window < at <= step]
    return sum(inside) / len(inside) if inside else None


def compare(log: Log, run: dict, loss_tolerance: float, metric_tolerance: float) -> Iterator[Row]:
    """Every anchor of a published run beside the log's value, in order of kind and step.

    Args:
        log: The training log.
        run: Entry of the curves file.
        loss_tolerance: Relative departure at which a 50-iteration loss is off; means over longer
            stretches are held to half of it.
        metric_tolerance: Departure in points at which a metric is off.
    """
    kinds = (
        ('losses', log.losses, POINT_WINDOW, loss_tolerance),
        ('means', log.losses, run['means']['window'], loss_tolerance / 2),
        ('metrics', log.metrics, 1, None),
    )
    for kind, values, window, tolerance in kinds:
        table = run[kind]
        label = f' (mean over {window})' if kind == 'means' else ''
        for step, *anchors in table['points']:
            for name, published in zip(table['names'], anchors):
                found = value_at(values.get(name, []), step, window)
                bound = metric_tolerance if tolerance is None else tolerance * published
                off = None if found is None else abs(found - published) > bound
                yield Row(step, name + label, published, found, off)


def report(rows: list[Row]) -> str:
    """The compared anchors, and a sentence on where the log first leaves each curve."""
    lines = [f'{"step":>8}  {"quantity":<28}{"published":>10}{"log":>10}{"change":>9}']
    for row in rows:
        if row.found is not None:
            change = f'{100 * (row.found / row.published - 1):+.1f}%'
            lines.append(
                f'{row.step:>8}  {row.name:<28}{row.published:>10.4g}{row.found:>10.4g}'
                f'{change:>9}{"  <-- off" if row.off else ""}'
            )
    compared = [row for row in rows if row.off is not None]
    last = max((row.step for row in compared), default=0)
    beyond = sum(row.step > last for row in rows)
    lines.append(f'{len(compared)} anchors compared up to step {last}, {beyond} lie beyond the log')
    for name in dict.fromkeys(row.name for row in compared):
        off = [row for row in compared if row.name == name and row.off]
        if off:
            first = off[0]
            lines.append(
                f'{name} leaves the published curve at step {first.step}: '
                f'{first.found:.4g} against {first.published:.4g}; '
                f'{len(off)} anchors off'
            )
        else:
            lines.append(f'{name} follows the published curve')
    return '\n'.join(lines)


def choose_run(runs: dict, reference: str | None, path: Path) -> str:
    """The run named by the caller, or by a folder on the way to the log.

    Raises:
        ValueError: If neither names a published run.
    """
    parts = reversed(path.resolve().parts)
    name = reference or next((part for part in parts if part in runs), None)
    if name not in runs:
        raise ValueError(
            f'choose_run: reference {name!r} is not one of {", ".join(runs)}; pass --reference'
        )
    return name


def parse_args(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('log', type=Path, help='work directory or log file')
    parser.add_argument('--reference', help='name of the published run: its config without .py')
    parser.add_argument(
        '--iterations-per-epoch',
        type=int,
        default=7330,
        help='of the log, for epoch-based training (default: %(default)s)',
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
    curves = json.loads((config_root() / CURVES).read_text())
    try:
        path = find_log(args.log)
        name = choose_run(curves['runs'], args.reference, path)
    except (FileNotFoundError, ValueError) as error:
        print(f'compare_curve: {error}', file=sys.stderr)
        return 2
    rows = list(
        compare(
            read_log(path, args.iterations_per_epoch),
            curves['runs'][name],
            args.loss_tolerance,
            args.metric_tolerance,
        )
    )
    print(f'{path} against {name}: {curves["source"]}')
    print(report(rows))
    if all(row.off is None for row in rows):
        return 2
    return 1 if any(row.off for row in rows) else 0


if __name__ == '__main__':
    sys.exit(main())
