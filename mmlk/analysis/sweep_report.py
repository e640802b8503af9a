"""The table and the plot of a sweep."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mmlk.analysis.sweep_runs import Status
from mmlk.analysis.sweeps import Cost, Sweep

if TYPE_CHECKING:
    from matplotlib.figure import Figure

AXES = {'macs': ('multiply-adds (G)', 1e9), 'parameters': ('parameters (M)', 1e6)}
"""Quantities that a metric is drawn over: name and unit."""
_MARKERS = 'osD^v'


class Row(NamedTuple):
    """A setting in the table.

    Attributes:
        name: Name of the setting.
        cost: Size of its model.
        published: Published ``parameters``, ``macs``, ``metric``, as far as known.
        statuses: How its runs ended, None for those that did not.
    """

    name: str
    cost: Cost
    published: Mapping[str, float]
    statuses: Sequence[Status | None]

    def values(self) -> list[float]:
        """Metric of every finished run that has one."""
        return [each.value for each in self.statuses if each and each.value is not None]

    def mean(self) -> float | None:
        """Mean metric of the finished runs."""
        return statistics.fmean(self.values()) if self.values() else None

    def spread(self) -> float | None:
        """Standard deviation over seeds (of a sample: n - 1), None with fewer than two."""
        return statistics.stdev(self.values()) if len(self.values()) > 1 else None

    def seconds(self) -> float | None:
        """Mean seconds per iteration of the finished runs."""
        found = [each.seconds for each in self.statuses if each and each.seconds is not None]
        return statistics.fmean(found) if found else None

    def state(self) -> str:
        """How many runs are finished, and why others failed."""
        ended = [each for each in self.statuses if each]
        failed = [each.reason for each in ended if each.state == 'failed']
        words = f'{len(ended) - len(failed)} of {len(self.statuses)} finished'
        return '; '.join([words, *(f'failed: {reason}' for reason in dict.fromkeys(failed))])

    def size(self, what: str) -> float:
        """``parameters`` or ``macs`` of the weights that are kept."""
        parameters, macs = self.cost.nonzero()
        return {'parameters': parameters, 'macs': macs}[what]


def metric_name(rows: Sequence[Row], sweep: Sweep) -> str:
    """What the metric column holds."""
    logged = (each.metric for row in rows for each in row.statuses if each and each.metric)
    return sweep.metric or next(logged, 'metric')


def markdown(sweep: Sweep, rows: Sequence[Row], trained: bool = True) -> str:
    """The table.

    Args:
        sweep: The sweep.
        rows: Its settings.
        trained: Whether there are columns for results of training.
    """
    columns = {'setting': [row.name for row in rows]}
    sparse = any(row.cost.density != 1 for row in rows)
    if sparse:
        columns['density'] = [f'{row.cost.density:g}' for row in rows]
    for what in ('parameters', 'macs'):
        title, unit = AXES[what]
        columns[title] = [f'{row.size(what) / unit:.5g}' for row in rows]
        if any(what in row.published for row in rows):
            published = [row.published.get(what, math.nan) for row in rows]
            columns[f'published {title}'] = [_cell('.6g', each / unit) for each in published]
            columns[f'{title}, change'] = [
                _cell('+.2%', row.size(what) / each - 1) for row, each in zip(rows, published)
            ]
    name = metric_name(rows, sweep)
    if trained:
        columns[name] = [_metric(row) for row in rows]
    if any('metric' in row.published for row in rows):
        columns[f'published {name}'] = [_cell('g', row.published.get('metric')) for row in rows]
    if trained:
        columns['seconds per iteration'] = [_cell('.4g', row.seconds()) for row in rows]
        columns['runs'] = [row.state().replace('|', r'\|') for row in rows]
    lines = [list(columns), ['---'] * len(columns), *zip(*columns.values())]
    notes = []
    if sparse:
        notes.append('Of sparse networks those weights are counted that are kept: density x all.')
    if sweep.published and sweep.source:
        notes.append(f'Published: {sweep.source}.')
    table = '\n'.join(f'| {" | ".join(line)} |' for line in lines)
    return '\n\n'.join([table, *notes]) + '\n'


def _cell(form: str, value: float | None) -> str:
    return '' if value is None or math.isnan(value) else format(value, form)


def _metric(row: Row) -> str:
    mean, spread = row.mean(), row.spread()
    if mean is None:
        return ''
    return f'{mean:.2f}' if spread is None else f'{mean:.2f} ± {spread:.2f}'


def as_json(sweep: Sweep, rows: Sequence[Row]) -> dict[str, Any]:
    """The table with all digits and every run."""
    return dict(
        base=sweep.base,
        metric=metric_name(rows, sweep),
        seeds=list(sweep.seeds),
        source=sweep.source,
        settings=[
            dict(
                name=row.name,
                **row.cost._asdict(),
                published=dict(row.published),
                mean=row.mean(),
                spread=row.spread(),
                seconds=row.seconds(),
                runs=[status._asdict() if status else None for status in row.statuses],
            )
            for row in rows
        ],
    )


def draw(sweep: Sweep, rows: Sequence[Row], over: str = 'macs') -> Figure:
    """The metric over the size, a point per setting; published metrics are hollow.

    Args:
        sweep: The sweep.
        rows: Its settings; those without a metric are left out.
        over: ``macs`` or ``parameters``.

    Returns:
        A matplotlib figure.
    """
    from matplotlib.figure import Figure

    title, unit = AXES[over]
    name = metric_name(rows, sweep)
    figure = Figure(figsize=(8, 4.6), layout='constrained')
    panel = figure.subplots()
    for number, row in enumerate(rows):
        at, mean, known = row.size(over) / unit, row.mean(), row.published.get('metric')
        style: dict[str, Any] = dict(
            color=f'C{number % 10}', marker=_MARKERS[number // 10 % len(_MARKERS)]
        )
        if mean is not None:
            panel.errorbar(at, mean, row.spread(), capsize=3, linestyle='', label=row.name, **style)
        if known is not None:
            label = f'{row.name}, published'
            panel.plot(at, known, fillstyle='none', linestyle='', label=label, **style)
    panel.set_xlabel(title)
    panel.set_ylabel(name)
    panel.grid(alpha=0.3)
    if panel.get_legend_handles_labels()[1]:
        figure.legend(loc='outside right upper', fontsize=8)
    figure.suptitle(f'{sweep.file.stem}: {Path(sweep.base).name}', fontsize=10)
    return figure
