"""Training logs as curves, whoever wrote them, with the runs of one training merged.

Three kinds of files are read, each with one JSON object per line:

* MMEngine's ``scalars.json``;
* MMCV 1.x's ``*.log.json``, which RecNeXt's authors published;
* ``*.txt`` of the trainers that began as DeiT's (RecNeXt, SLaK, DCLS-ConvNeXt), a line per epoch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

PATTERNS = ('scalars.json', '*.log.json')
"""Names of logs in a work folder."""
Curve = list[tuple[float, float]]
"""Rising (step, value) pairs."""

_LOSS = re.compile(r'loss(_\w+)?')
_METRIC = re.compile(r'mIoU|aAcc|mAcc|(bbox|segm)_mAP(_50|_75)?|top[15]')
_NAMES = {'test_acc1': 'top1', 'test_acc5': 'top5', 'train_loss': 'loss'}
_HEADERS = {'env_info', 'exp_name', 'hook_msgs'}
_START = re.compile(r'\d{8}_\d{6}')
_EPOCH = re.compile(r'Epoch(?:\(train\))?\s*\[\s*\d+\]\s*\[\s*\d+/(\d+)\]')


class Log(NamedTuple):
    """A training log.

    Attributes:
        losses: Curve of each loss by name.
        metrics: Curve of each metric by name, in per cent.
        files: What was read, a sentence per file in the order of the runs.
        seconds: Duration of an iteration, as the lines with losses give it.
    """

    losses: dict[str, Curve]
    metrics: dict[str, Curve]
    files: tuple[str, ...]
    seconds: Curve


class Entry(NamedTuple):
    """One line of a log; ``step`` counts iterations from the start of training."""

    step: float
    losses: dict[str, float]
    metrics: dict[str, float]
    seconds: float | None


def find_logs(path: Path) -> list[Path]:
    """The logs of a work folder, from the first run to the last; a file is itself.

    Runs are put in order by the time in the name of their folder or file, as MMEngine and MMCV write
    it, and without one by when they were last written.

    Raises:
        FileNotFoundError: If there is none.
    """
    if path.is_file():
        return [path]
    found = {file for pattern in PATTERNS for file in path.rglob(pattern)}
    if not found:
        raise FileNotFoundError(f'find_logs: no {" or ".join(PATTERNS)} below {str(path)!r}')
    starts = {file: _START.findall(str(file.relative_to(path))) for file in found}
    if all(starts.values()):
        return sorted(found, key=lambda file: (starts[file][-1], str(file)))
    return sorted(found, key=lambda file: (file.stat().st_mtime, str(file)))


def read_log(
    files: Sequence[Path], per_epoch: int | None = None, own_per_epoch: int | None = None
) -> Log:
    """Read the logs of one training, which may have been resumed.

    A run that goes back to an earlier step replaces what an earlier one logged from there on, also
    what lies beyond its own end: that belongs to weights which were given up.

    Args:
        files: Logs in the order of the runs.
        per_epoch: Iterations per epoch on the axis that steps are given on. Steps of a training
            with other epochs (another batch size) are stretched to it.
        own_per_epoch: Iterations per epoch of the log. By default the text log beside a file tells
            them, and where there is none they are ``per_epoch``.

    Raises:
        ValueError: If a file is no log of a known kind, if steps are counted in epochs of unknown
            length, or if no loss and no metric was logged.
    """
    losses: dict[str, dict[float, float]] = {}
    metrics: dict[str, dict[float, float]] = {}
    seconds: dict[float, float] = {}
    last, notes = 0.0, []
    for file in files:
        own = own_per_epoch or _epoch_length(file) or per_epoch
        scale = per_epoch / own if per_epoch and own else 1.0
        lines, note = _lines(file)
        steps = []
        for step, found_losses, found_metrics, duration in _entries(file, lines, own):
            step *= scale
            if found_losses:
                if step <= last:
                    _cut([*losses.values(), *metrics.values(), seconds], step)
                last = step
            if duration is not None:
                seconds[step] = duration
            for table, found in ((losses, found_losses), (metrics, found_metrics)):
                for name, value in found.items():
                    table.setdefault(name, {})[step] = value
            steps.append(step)
        span = f'steps {min(steps):g} to {max(steps):g}' if steps else 'nothing logged'
        notes.append(f'{file}: {span}{note}')
    loss_curves, metric_curves = (
        {name: sorted(curve.items()) for name, curve in table.items() if curve}
        for table in (losses, metrics)
    )
    if not (loss_curves or metric_curves):
        raise ValueError(f'read_log: no loss and no metric in {", ".join(map(str, files))}')
    return Log(loss_curves, metric_curves, tuple(notes), sorted(seconds.items()))


def _cut(tables: Sequence[dict[float, float]], start: float) -> None:
    """Remove what was logged from ``start`` on."""
    for curve in tables:
        for step in [step for step in curve if step >= start]:
            del curve[step]


def _epoch_length(file: Path) -> int | None:
    """Iterations per epoch that the text log of the same run states: ``<start>.log``."""
    if file.parent.name == 'vis_data':  # MMEngine's, in the folder of the run
        texts = [file.parents[1] / f'{file.parents[1].name}.log']
    else:  # MMCV 1.x's, beside <start>.log.json
        texts = [file.with_suffix('')] if file.name.endswith('.log.json') else []
    for text in filter(Path.is_file, texts):
        found = _EPOCH.search(text.read_text(encoding='utf-8', errors='replace'))
        if found:
            return int(found[1])
    return None


def _lines(file: Path) -> tuple[list[dict], str]:
    """The objects of a log, and a remark on what was left out."""
    text = file.read_text(encoding='utf-8', errors='replace')
    lines, note = text.splitlines(), ''
    found: list[dict] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            if number == len(lines) and not text.endswith('\n') and found:
                note = ', the last line is cut off'
                continue
            entry = None
        if not isinstance(entry, dict):
            raise ValueError(
                f'read_log: line {number} of {file} is no JSON object: {line[:60]!r}; logs with one '
                f'per line are read: {", ".join(PATTERNS)}, *.txt of timm-like trainers'
            )
        found.append(entry)
    return found, note


def _entries(file: Path, lines: Sequence[Mapping], per_epoch: int | None) -> Iterator[Entry]:
    """The entries of one file that hold a loss or a metric."""
    last, epochs = 0.0, any('epoch' in line for line in lines)
    for number, line in enumerate(lines, 1):
        if _HEADERS & set(line) or not line:
            continue
        if not {'step', 'mode', 'train_loss'} & set(line):
            raise ValueError(
                f'read_log: object {number} of {file} has neither step, mode nor train_loss: '
                f'{", ".join(list(line)[:6])}'
            )
        losses, metrics = _values(line)
        if not (losses or metrics):
            continue
        if _counts_epochs(line, epochs) and not per_epoch:
            raise ValueError(
                f'read_log: {file} counts epochs, and nothing says how many iterations one has; '
                'pass --iterations-per-epoch'
            )
        step = _step(line, last, epochs, per_epoch or 0)
        last = step if losses else last
        yield Entry(step, losses, metrics, line.get('time') if losses else None)


def _values(line: Mapping) -> tuple[dict[str, float], dict[str, float]]:
    """Losses, and metrics in per cent, of one line."""
    # All but segmentation metrics of MMCV 1.x, and box and mask AP, are in per cent already.
    fractions = 'mode' in line
    losses, metrics = {}, {}
    for key, value in line.items():
        name = _NAMES.get(key, key.removeprefix('coco/').removeprefix('accuracy/'))
        if _LOSS.fullmatch(name):
            losses[name] = float(value)
        elif _METRIC.fullmatch(name):
            metrics[name] = float(value) * (100 if fractions or '_mAP' in name else 1)
    return losses, metrics


def _counts_epochs(line: Mapping, epochs: bool) -> bool:
    """Whether the step of a line follows from its epoch."""
    if 'train_loss' in line:
        return True
    if 'step' in line:
        return epochs and 'loss' not in line
    return 'mIoU' not in line and 'decode.loss_ce' not in line


def _step(line: Mapping, last: float, epochs: bool, per_epoch: int) -> float:
    """Iterations from the start of training to a line; ``last`` is that of the last loss."""
    if 'train_loss' in line:  # a line after each epoch, counted from 0
        return (line['epoch'] + 1) * per_epoch
    if 'step' in line:  # of MMEngine: epochs in the metrics of epoch-based loops
        return line['step'] * (per_epoch if _counts_epochs(line, epochs) else 1)
    if 'mIoU' in line:  # MMCV 1.x writes the number of validation batches here
        return last
    if 'decode.loss_ce' in line:
        return line['iter']
    if line['mode'] != 'train':
        return line['epoch'] * per_epoch
    return (line['epoch'] - 1) * per_epoch + line['iter']
