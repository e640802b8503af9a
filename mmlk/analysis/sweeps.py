"""Sweeps: a grid of changes to one config, and what each setting of it costs.

A sweep is a small file that MMEngine's ``Config`` reads (Python, YAML or JSON)::

    base = 'mmlk::inceptionnext_a_in1k_mini'
    axes = [
        dict(key='model.backbone.arch', values=[('atto', 'atto'), ('tiny', 'tiny')]),
        dict(values=[('slow', {'optim_wrapper.optimizer.lr': 1e-4}), ('fast', {})]),
    ]

The grid is the product of the axes. A value has a short name; where the axis has no ``key``, it is a
dict of ``--cfg-options``. Training is in :mod:`mmlk.analysis.sweep_runs`, tables and plots in
:mod:`mmlk.analysis.sweep_report`.
"""

from __future__ import annotations

import copy
import itertools
import logging
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config
from mmengine.logging import MMLogger

from mmlk.cli import checks
from mmlk.cli.config import load_config
from mmlk.cli.evaluation import usual_shape
from mmlk.configs import config_root

KEYS = ('base', 'axes', 'cfg_options', 'seeds', 'metric', 'published', 'source')
PUBLISHED = ('parameters', 'macs', 'metric')
_NAME = re.compile(r'\w[\w.+]*')


class Setting(NamedTuple):
    """One point of the grid: the names of its values joined by ``-``, and its changes to the base."""

    name: str
    options: dict[str, Any]


class Run(NamedTuple):
    """One training: a setting, and the seed that its name ends with, None for that of the config."""

    name: str
    setting: Setting
    seed: int | None


class Sweep(NamedTuple):
    """What a sweep's file says.

    Attributes:
        file: The file.
        base: Config that every setting changes.
        settings: The grid.
        seeds: Seeds that each setting is trained with; empty for one run as the config says.
        metric: Name of the metric in the logs, None for the first one known.
        published: Published ``parameters``, ``macs`` (both in ones) and ``metric`` by setting.
        source: Where these were published.
    """

    file: Path
    base: str
    settings: tuple[Setting, ...]
    seeds: tuple[int, ...]
    metric: str | None
    published: dict[str, dict[str, float]]
    source: str | None

    def runs(self) -> list[Run]:
        """Every training, setting by setting."""
        seeds: Sequence[int | None] = self.seeds or (None,)
        return [
            Run(setting.name if seed is None else f'{setting.name}-seed{seed}', setting, seed)
            for setting in self.settings
            for seed in seeds
        ]


class Cost(NamedTuple):
    """Size of a model.

    Attributes:
        parameters: Weights, buffers not counted.
        macs: Multiply-adds of one image.
        density: Share of the weights that sparse training keeps, 1 without it.
    """

    parameters: int
    macs: int
    density: float

    def nonzero(self) -> tuple[float, float]:
        """Parameters and multiply-adds of the weights that are kept, as sparse networks are published.

        Every layer is taken to be as dense as the whole.
        """
        return self.parameters * self.density, self.macs * self.density


def ready_sweeps() -> dict[str, Path]:
    """The sweeps of this package by name."""
    return {path.stem: path for path in sorted((config_root() / 'sweeps').glob('*.py'))}


def load_sweep(path: str) -> Sweep:
    """Read a sweep and check its form; its settings are checked by :func:`setting_config`.

    Args:
        path: File, or name of a ready sweep. A ``base`` that is a file is looked for beside it first.

    Raises:
        ValueError: If there is no such file, if it cannot be read, or if what it says is no sweep.
    """
    ready = ready_sweeps()
    file = Path(path)
    if not file.is_file():
        if path not in ready:
            close = get_close_matches(file.stem, ready, n=3, cutoff=0.4) or ready
            raise ValueError(f'there is no sweep {path!r}; ready ones: {", ".join(close)}')
        file = ready[path]
    try:
        content = Config.fromfile(str(file)).to_dict()
    except Exception as error:  # a Python file is a program: anything may be raised while it runs
        raise ValueError(f'{file} cannot be read: {type(error).__name__}: {error}') from error
    try:
        return _sweep(file, content)
    except ValueError as error:
        raise ValueError(f'{file}: {error}') from error


def _sweep(file: Path, content: Mapping[str, Any]) -> Sweep:
    _check_known(content, KEYS, 'a sweep')
    base = content.get('base')
    if not isinstance(base, str):
        raise ValueError(f'base {base!r} is no config; write base = "mmlk::inceptionnext_t_in1k"')
    beside = file.parent / base
    settings = tuple(_grid(content.get('axes'), content.get('cfg_options') or {}))
    seeds = tuple(content.get('seeds') or ())
    if any(type(seed) is not int or seed < 0 for seed in seeds):
        raise ValueError(f'seeds {list(seeds)} are not whole numbers from 0')
    published = content.get('published') or {}
    for name, figures in published.items():
        _check_known({name: 0}, [setting.name for setting in settings], 'the grid')
        _check_known(figures, PUBLISHED, f'published of {name}')
    sweep = Sweep(
        file,
        str(beside) if beside.is_file() else base,
        settings,
        seeds,
        content.get('metric'),
        published,
        content.get('source'),
    )
    # Names become folders, and some file systems ignore case.
    counted = Counter(run.name.lower() for run in sweep.runs())
    twice = [run.name for run in sweep.runs() if counted[run.name.lower()] > 1]
    if twice:
        raise ValueError(
            f'two settings have one name: {", ".join(twice)}; rename a value or a seed'
        )
    return sweep


def _grid(axes: Any, fixed: Mapping[str, Any]) -> Iterator[Setting]:
    """The product of the axes, the last one changing fastest."""
    if not isinstance(axes, (list, tuple)) or not axes:
        raise ValueError(f'axes {axes!r} is no list with an axis, such as {_EXAMPLE}')
    for point in itertools.product(*(_values(axis, number) for number, axis in enumerate(axes, 1))):
        options = dict(fixed)
        for name, changes in point:
            for key, value in changes.items():
                if key in options:
                    raise ValueError(
                        f'{key} is set twice: by {name} and by another axis or cfg_options'
                    )
                options[key] = value
        yield Setting('-'.join(name for name, _ in point), options)


_EXAMPLE = "dict(key='model.backbone.arch', values=[('t', 'tiny'), ('s', 'small')])"


def _values(axis: Any, number: int) -> list[tuple[str, dict[str, Any]]]:
    """Name and changes of every value of an axis."""
    if not isinstance(axis, Mapping):
        raise ValueError(f'axis {number} is {axis!r}, no dict such as {_EXAMPLE}')
    _check_known(axis, ('key', 'values'), f'axis {number}')
    key, values = axis.get('key'), axis.get('values')
    if not isinstance(values, (list, tuple)) or not values:
        raise ValueError(f'axis {number} ({key or "no key"}) is empty; give it values: {_EXAMPLE}')
    found = []
    for pair in values:
        if not (isinstance(pair, (list, tuple)) and len(pair) == 2 and isinstance(pair[0], str)):
            raise ValueError(f'axis {number}: {pair!r} is no pair of a name and a value')
        name, value = pair
        if not _NAME.fullmatch(name):
            raise ValueError(
                f'axis {number}: the name {name!r} is no name of a folder; take letters, digits, ".", '
                '"_" and "+"'
            )
        if key is None and not isinstance(value, Mapping):
            raise ValueError(
                f'axis {number}: {name} is {value!r}; without a key for the axis it is a dict of options'
            )
        found.append((name, dict(value) if key is None else {key: value}))
    return found


def _check_known(given: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for name in given:
        if name not in known:
            close = get_close_matches(str(name), known, n=3, cutoff=0.5) or known
            raise ValueError(f'{where} has no {name!r}; it has {", ".join(close)}')


def setting_config(sweep: Sweep, setting: Setting, seed: int | None = None) -> Config:
    """The config of a setting, without a work folder.

    Raises:
        ValueError: If the base does not exist, or an option is one that no config reads.
    """
    options = copy.deepcopy(setting.options)  # merging takes entries out of dicts
    if seed is not None:
        options['randomness.seed'] = seed
    try:
        cfg = load_config(sweep.base, options)
        checks.check_packages(cfg)
        checks.check_types(cfg)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f'{sweep.file}: setting {setting.name}: {error}') from error
    cfg.pop('work_dir')
    return cfg


def cost(sweep: Sweep, setting: Setting) -> Cost:
    """Parameters and multiply-adds of a setting's model, at the size that papers give.

    Raises:
        ValueError: If the model cannot be built.
    """
    import torch

    from mmlk.cli import complexity
    from mmlk.cli.fit import check_fit

    cfg = setting_config(sweep, setting)
    try:
        check_fit(cfg)
        with _quiet(), torch.device('meta'):
            model = complexity.build_model(cfg)
        parts = complexity.measure(model, usual_shape(cfg))
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f'{sweep.file}: setting {setting.name}: {error}') from error
    macs = sum(part.macs or 0 for part in parts)
    return Cost(sum(part.parameters for part in parts), macs, density(cfg))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without remarks of models, which say the same for every setting."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def density(cfg: Config) -> float:
    """Share of the weights that the sparse training of a config keeps, 1 without it."""
    hooks = [*(cfg.get('default_hooks') or {}).values(), *(cfg.get('custom_hooks') or ())]
    for hook in hooks:
        if hook and hook.get('type') == 'mmlk.SparseMaskHook':
            return hook.get('density', 1.0) if hook.get('init') != 'from_weights' else 1.0
    return 1.0
