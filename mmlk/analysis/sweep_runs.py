"""Runs of a sweep: each in a folder of its own, started, resumed and judged one by one.

``WORK_DIR/configs/RUN.py`` is the whole config of a run and ``WORK_DIR/RUN`` its work folder. In this
``sweep_status.json`` appears when the run has ended, whole, and says how; without it a run was not
started, or was interrupted, and is continued.
"""

from __future__ import annotations

import fcntl
import json
import os
import statistics
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from mmlk.analysis.logs import find_logs, read_log
from mmlk.analysis.sweeps import Run, Sweep, setting_config
from mmlk.cli.files import complete

STATUS = 'sweep_status.json'
OUTPUT = 'sweep_output.txt'
METRICS = ('mIoU', 'bbox_mAP', 'top1')
"""Metrics that stand for a run where the sweep names none; a run logs one of them."""
Command = Callable[[Path, Path], Sequence[str]]
"""Words that train a config (first argument) in a work folder (second), continuing what is there."""


class Busy(RuntimeError):
    """Another process trains the run."""


class Status(NamedTuple):
    """How a run ended.

    Attributes:
        state: ``finished`` or ``failed``.
        reason: Why it failed.
        metric: Name of the metric; None where nothing was validated.
        value: Its last value, as the log has it, in per cent.
        seconds: Median of the logged seconds per iteration.
    """

    state: str
    reason: str = ''
    metric: str | None = None
    value: float | None = None
    seconds: float | None = None


def read_status(folder: Path) -> Status | None:
    """The recorded end of the run in ``folder``, None if there is none.

    Raises:
        ValueError: If the file is not one that this module wrote.
    """
    path = folder / STATUS
    if not path.is_file():
        return None
    try:
        return Status(**json.loads(path.read_text(encoding='utf-8')))
    except (TypeError, ValueError) as error:
        raise ValueError(f'{path} is no status of a run: {error}; delete it') from error


def write_config(sweep: Sweep, run: Run, work_dir: Path) -> Path:
    """Write the config of a run.

    Raises:
        ValueError: If the run was begun with another config, or the config is wrong.
    """
    path = work_dir / 'configs' / f'{run.name}.py'
    text = setting_config(sweep, run.setting, run.seed).pretty_text
    if path.is_file() and path.read_text(encoding='utf-8') != text:
        folder = work_dir / run.name
        if folder.exists():
            raise ValueError(
                f'{run.name} was trained with another config, {path}; delete {folder} to train it '
                'anew, or choose another --work-dir'
            )
    with complete(path) as partial:
        partial.write_text(text, encoding='utf-8')
    return path


def carry_out(config: Path, folder: Path, command: Command, metric: str | None) -> Status:
    """Train a run to its end unless that was done before; the output goes to ``sweep_output.txt``.

    Args:
        config: Config of the run.
        folder: Its work folder.
        command: The training.
        metric: Name of the metric in the log, None for the first known.

    Raises:
        Busy: If another process trains this run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _held(folder) as lock:
        before = read_status(folder)
        if before and before.state == 'finished':
            return before
        (folder / STATUS).unlink(missing_ok=True)
        with open(folder / OUTPUT, 'ab') as output:
            start = output.tell()
            # The training inherits the lock: if it outlives this process, nobody starts it twice.
            done = subprocess.run(
                command(config, folder), stdout=output, stderr=subprocess.STDOUT, pass_fds=(lock,)
            )
        if done.returncode:
            status = Status('failed', _reason(done.returncode, folder / OUTPUT, start))
        else:
            status = _result(folder, metric)
        with complete(folder / STATUS) as partial:
            partial.write_text(json.dumps(status._asdict()) + '\n', encoding='utf-8')
        return status


@contextmanager
def _held(folder: Path) -> Iterator[int]:
    """Keep other processes from the folder; gives the lock's file descriptor."""
    lock = os.open(folder / '.sweep_lock', os.O_RDWR | os.O_CREAT)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Busy(f'another process trains it in {folder}') from error
        yield lock
    finally:
        os.close(lock)


def _reason(code: int, output: Path, start: int) -> str:
    """Why a training failed: how it ended, and the last thing that it said."""
    with open(output, 'rb') as file:
        file.seek(start)
        lines = [line.strip() for line in file.read().decode(errors='replace').splitlines()]
    said = next((line for line in reversed(lines) if line), f'it said nothing, see {output}')
    how = f'signal {-code}' if code < 0 else f'exit status {code}'
    return f'{how}: {said}'


def _result(folder: Path, metric: str | None) -> Status:
    """What the logs of a training that came to its end say."""
    try:
        log = read_log(find_logs(folder))
    except (OSError, ValueError) as error:
        return Status('failed', f'no result: {error}')
    if metric and metric not in log.metrics:
        known = ', '.join(log.metrics) or 'none'
        return Status('failed', f'no result: the log has no metric {metric!r}; it has {known}')
    name = metric or next((each for each in METRICS if each in log.metrics), None)
    value = log.metrics[name][-1][1] if name else None
    durations = [duration for _, duration in log.seconds]
    return Status(
        'finished',
        metric=name,
        value=value,
        seconds=statistics.median(durations) if durations else None,
    )


def collect(runs: Sequence[Run], work_dir: Path) -> dict[str, list[Status | None]]:
    """Ends of the runs by setting, None for runs that have none on record."""
    found: dict[str, list[Status | None]] = {}
    for run in runs:
        found.setdefault(run.setting.name, []).append(read_status(work_dir / run.name))
    return found
