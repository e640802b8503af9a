"""A case's sides in processes of their own: verified, timed in turns, summarised."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parent)]

from benchmark_ops import CLOCKS, LAYOUTS, device  # noqa: E402
from networks import Case, build, exported, timed  # noqa: E402

from mmlk.benchmark.forms import Task, engine  # noqa: E402
from mmlk.benchmark.process import FormProcess, Timed, first_line  # noqa: E402
from mmlk.benchmark.report import versions  # noqa: E402
from mmlk.benchmark.turns import take_turns, verify  # noqa: E402

ENGINES = ('onnxruntime', 'openvino')
RIVALS = ('eager', 'compile', *ENGINES)
TOLERANCE = 1e-3  # of the largest magnitude, float32, over a whole network
TRAINING_TOLERANCE = 1e-2  # the same of gradients, through batch statistics


def sides(
    case: Case, against: Sequence[str], layouts: Sequence[str], compiled: bool = False
) -> list[str]:
    """Names of all sides of a case; the first is what the others are compared with.

    Args:
        case: What is timed.
        against: Rivals, of `RIVALS`; engines serve in inference alone.
        layouts: Of our side and of the rival in eager mode.
        compiled: Have our side under torch.compile as well.
    """
    names = [f'ours {layout}' for layout in layouts]
    if compiled:
        names.append('ours compile')
    if case.rival and 'eager' in against:
        names += [f'rival {layout}' for layout in layouts]
    if case.rival and 'compile' in against:
        names.append('rival compile')
    return names + [name for name in ENGINES if name in against and not case.train]


def contest(
    case: Case,
    names: Sequence[str],
    rounds: int,
    seconds: float = float('inf'),
    clock: str = 'wall',
    kept: Path | None = None,
) -> dict[str, dict]:
    """Verify the sides of a case, then time them in turns.

    Args:
        case: What is timed.
        names: Of `sides`.
        rounds: Steps of each side.
        seconds: No round begins later, once there are three.
        clock: Of `CLOCKS`.
        kept: Folder that keeps exported files for the next contest; None exports anew.

    Returns:
        Side -> ``median_ms``, ``min_ms``, ``quartiles_ms``, ``images_per_second``, ``peak_mb``,
        ``deviation`` from the first side and ``rounds``; or a ``note`` why it was not timed.

    Raises:
        RuntimeError: If outputs, or losses and gradients, differ; nothing is timed then.
    """
    notes: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        makers = dict(_makers(case, names, folder, kept or folder, notes))
        running = {
            side: stack.enter_context(FormProcess(make, folder / 'image.npy', CLOCKS[clock]))
            for side, make in makers.items()
        }
        bound = TRAINING_TOLERANCE if case.train else TOLERANCE
        deviations = verify(running, notes, 0.1 if case.amp else bound)
        if names[0] in notes:
            raise RuntimeError(f'{names[0]} {notes[names[0]]}; nothing is timed')
        timed_sides = {side: running[side] for side in deviations}
        times = take_turns(timed_sides, rounds, seconds, partial(_progress, rounds))
        peaks = {side: process.peak() for side, process in timed_sides.items()}
    print(file=sys.stderr)
    results = {}
    for side in names:
        if side in notes:
            results[side] = dict(note=notes[side])
            continue
        spent = [1e3 * each for each in times[side]]
        median = statistics.median(spent)
        results[side] = dict(
            median_ms=median,
            min_ms=min(spent),
            quartiles_ms=statistics.quantiles(spent, n=4)[::2] if len(spent) > 1 else spent * 2,
            images_per_second=1e3 * case.shape[0] / median,
            peak_mb=peaks[side],
            deviation=deviations[side],
            rounds=len(spent),
        )
    return results


def _makers(
    case: Case, names: Sequence[str], folder: Path, kept: Path, notes: dict[str, str]
) -> Iterator[tuple[str, Callable[[np.ndarray], Timed]]]:
    """What builds each side in its process; engines that cannot run get a note."""
    network = build(case).eval()
    torch.save(list(network.state_dict().values()), folder / 'weights.pth')
    noise = np.random.default_rng(0).standard_normal(case.shape)
    np.save(folder / 'image.npy', noise.astype(np.float32))
    file = kept / f'{_key(case)}.onnx'
    why = ''
    if any(name in ENGINES for name in names) and not file.exists():
        try:
            exported(case, network, file)
        except (ImportError, ValueError, RuntimeError) as error:
            why = f'cannot be exported: {first_line(error)}'
    for name in names:
        if name not in ENGINES:
            side, form = name.split()
            layout = form if form in LAYOUTS else 'contiguous'
            form = 'compile' if form == 'compile' else 'eager'
            yield name, partial(timed, case, side, form, layout, folder / 'weights.pth')
        elif why:
            notes[name] = why
        else:
            size = case.shape[2:]
            task = Task(case.model, None, None, None, case.shape[0], size, 'cpu', case.threads)
            yield name, partial(engine, name, task, file)


def _key(case: Case) -> str:
    """Name of an exported network, of whatever size of image."""
    facts = replace(case, shape=(0, 0, 0, 0), train=False, threads=0, rival=None, rival_kwargs={})
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def _progress(rounds: int, done: int) -> None:
    print(f'\rround {done}/{rounds}', end='', file=sys.stderr, flush=True)


def about(case: Case) -> dict:
    """Machine, versions and settings of a case."""
    settings = {key: value for key, value in asdict(case).items() if value not in (None, {})}
    facts = {**device(), 'threads': case.threads, 'load': round(os.getloadavg()[0], 2)}
    if case.device.startswith('cuda'):
        facts['gpu'] = torch.cuda.get_device_name(case.device)
    return dict(settings=settings, device=facts, system=platform.platform(), versions=versions())


def gain(results: dict[str, dict], rival: Sequence[str], ours: Sequence[str], key='median_ms'):
    """How many times faster the fastest of ours is than the fastest of the rivals; None if not timed."""
    best = [
        min((results[name][key] for name in names if key in results.get(name, {})), default=None)
        for names in (rival, ours)
    ]
    return best[0] / best[1] if all(best) else None


def gains(results: dict[str, dict]) -> dict[str, float]:
    """Gain over each rival in the layout of images, and of the better layouts of both sides."""
    ours = [name for name in results if name.startswith('ours') and name.split()[1] in LAYOUTS]
    usual = ours[:1]
    found = {name: gain(results, [name], usual) for name in results if not name.startswith('ours')}
    eager = [f'rival {layout}' for layout in LAYOUTS]
    found['rival, better layout of each side'] = gain(results, eager, ours)
    return {name: value for name, value in found.items() if value is not None}
