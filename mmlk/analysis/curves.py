"""A training log beside a published one: differences at given steps, and a picture."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, NamedTuple

from mmlk.analysis.logs import Curve, Log
from mmlk.configs import config_root

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POINT_WINDOW = 50
"""Iterations that a single published loss is a mean over."""
_PANEL_COLUMNS = 3


class Row(NamedTuple):
    """One published value beside the log's.

    Attributes:
        step: Iteration on the published axis.
        name: Quantity.
        published: Published value.
        found: The log's value, None where it has none.
        off: Whether they differ by more than the tolerance, None where the log has no value.
        between: Whether one of the two is interpolated between neighbours.
    """

    step: float
    name: str
    published: float
    found: float | None
    off: bool | None
    between: bool = False


def published_runs() -> dict[str, dict[str, Any]]:
    """The published curves by the name of the config, each with its ``source``."""
    runs = {}
    for path in sorted((config_root() / 'metafiles').glob('*_curves.json')):
        content = json.loads(path.read_text(encoding='utf-8'))
        runs.update(
            (name, dict(run, source=content['source'])) for name, run in content['runs'].items()
        )
    return runs


def as_run(log: Log, source: str, window: int) -> dict[str, Any]:
    """A log in the form of a published run, to compare others with.

    Args:
        log: The log.
        source: Where it comes from.
        window: Steps that a loss is averaged over.
    """
    last = max((curve[-1][0] for curve in log.losses.values()), default=0.0)
    ends = [window * number for number in range(1, int(last // window) + 1)]
    means = [
        [end, *(value_at(curve, end, window) for curve in log.losses.values())] for end in ends
    ]
    run: dict[str, Any] = dict(source=source)
    if means:
        points = [point for point in means if None not in point]
        run['means'] = dict(names=list(log.losses), window=window, points=points)
    if log.metrics:
        steps = sorted(set.intersection(*({at for at, _ in c} for c in log.metrics.values())))
        tables = [dict(curve) for curve in log.metrics.values()]
        points = [[step, *(table[step] for table in tables)] for step in steps]
        run['metrics'] = dict(names=list(log.metrics), points=points)
    return run


def quantities(run: Mapping) -> list[str]:
    """Names of the losses and metrics of a published run."""
    tables = (run[kind] for kind in ('losses', 'means', 'metrics') if kind in run)
    return list(dict.fromkeys(name for table in tables for name in table['names']))


def check_keys(keys: Sequence[str], run: Mapping, log: Log) -> None:
    """Raise where a quantity was not published, or is not in the log.

    Raises:
        ValueError: With the closest names.
    """
    published = quantities(run)
    for key in keys:
        for known, where in ((published, 'published run'), ([*log.losses, *log.metrics], 'log')):
            if key not in known:
                close = get_close_matches(key, known, n=4, cutoff=0.4) or known
                raise ValueError(f'the {where} has no {key!r}; close to it: {", ".join(close)}')


def value_at(curve: Curve, step: float, window: float) -> float | None:
    """Mean of the log's values in the ``window`` iterations up to ``step``; None beyond its end."""
    if not curve or curve[-1][0] < step:
        return None
    inside = [value for at, value in curve if step - window < at <= step]
    return sum(inside) / len(inside) if inside else None


def between(curve: Sequence[Sequence[float]], step: float, column: int = 1) -> float | None:
    """Value at ``step`` on the straight line between its neighbours; None outside the curve."""
    place = bisect_left([point[0] for point in curve], step)
    if place == len(curve) or (place == 0 and curve[0][0] != step):
        return None
    right = curve[place]
    if right[0] == step:
        return right[column]
    left = curve[place - 1]
    share = (step - left[0]) / (right[0] - left[0])
    return left[column] + share * (right[column] - left[column])


def compare(
    log: Log,
    run: Mapping,
    loss_tolerance: float,
    metric_tolerance: float,
    at: Sequence[float] | None = None,
    keys: Sequence[str] | None = None,
) -> Iterator[Row]:
    """Published values beside the log's, in order of kind and step.

    Args:
        log: The training log.
        run: Entry of the curves file.
        loss_tolerance: Relative departure at which a 50-iteration loss is off; means over longer
            stretches are held to half of it.
        metric_tolerance: Departure in points at which a metric is off.
        at: Steps to compare at; by default those that were published. Between these, and between
            evaluations of the log, values are interpolated.
        keys: Quantities; all by default.
    """
    for kind, curves, tolerance in (
        ('losses', log.losses, loss_tolerance),
        ('means', log.losses, loss_tolerance / 2),
        ('metrics', log.metrics, None),
    ):
        if kind not in run:
            continue
        table = run[kind]
        window = table.get('window', POINT_WINDOW)
        label = f' (mean over {window})' if kind == 'means' else ''
        known = {point[0] for point in table['points']}
        for step in sorted(known) if at is None else at:
            for column, name in enumerate(table['names'], 1):
                published = between(table['points'], step, column)
                if published is None or (keys and name not in keys):
                    continue
                curve = curves.get(name, [])
                if kind == 'metrics':
                    found = between(curve, step)
                    exact = step in known and (found is None or step in dict(curve))
                else:
                    found, exact = value_at(curve, step, window), step in known
                bound = metric_tolerance if tolerance is None else tolerance * published
                off = None if found is None else abs(found - published) > bound
                yield Row(step, name + label, published, found, off, not exact)


def draw(log: Log, run: Mapping, title: str, keys: Sequence[str] | None = None) -> Figure:
    """The log over the published curve, a panel per quantity.

    Args:
        log: The training log.
        run: The published run.
        title: Headline.
        keys: Quantities; all that were published by default.

    Returns:
        A matplotlib figure.
    """
    from matplotlib.figure import Figure

    names = list(keys or quantities(run))
    columns = min(_PANEL_COLUMNS, len(names))
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.1 * rows + 0.4), layout='constrained')
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for name, panel in zip(names, panels):
        _draw_published(panel, run, name)
        curve = log.losses.get(name) or log.metrics.get(name) or []
        if curve:
            style = dict(marker='x', linewidth=1.2) if name in log.metrics else dict(linewidth=0.7)
            panel.plot(*zip(*curve), color='tab:orange', label='log', **style)
        panel.set_title(name, fontsize=9)
        panel.set_xlabel('iteration', fontsize=8)
        panel.tick_params(which='both', labelsize=8)
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
        if name.startswith('loss'):
            panel.set_yscale('log')
    for panel in panels[len(names) :]:
        panel.axis('off')
    figure.suptitle(title, fontsize=10)
    return figure


def _draw_published(panel: Any, run: Mapping, name: str) -> None:
    for kind, label, style in (
        ('losses', 'published', dict(marker='.', linestyle='')),
        ('means', 'published, mean', dict(linewidth=1.6)),
        ('metrics', 'published', dict(marker='o', markersize=4, linewidth=1.6)),
    ):
        table = run.get(kind)
        if table and name in table['names']:
            column = table['names'].index(name) + 1
            points = table['points']
            if kind == 'means':
                # a mean stands for the middle of the stretch that it is taken over
                steps = [point[0] - table['window'] / 2 for point in points]
            else:
                steps = [point[0] for point in points]
            panel.plot(
                steps, [point[column] for point in points], color='tab:blue', label=label, **style
            )
