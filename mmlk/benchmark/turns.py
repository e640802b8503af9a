"""Forms of a model against each other: outputs compared, then steps in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from mmlk.benchmark.process import FormProcess
from mmlk.export.compare import DISAGREEMENT, TOLERANCE


def take_turns(
    running: Mapping[str, FormProcess],
    rounds: int,
    seconds: float = float('inf'),
    said: Callable[[int], None] = lambda done: None,
) -> dict[str, list[float]]:
    """Seconds of the steps of each form, one form after the other in every round.

    Args:
        running: Forms by name, verified.
        rounds: Steps of each form.
        seconds: No round begins later than this, once there are three.
        said: Told how many rounds are done.
    """
    times: dict[str, list[float]] = {form: [] for form in running}
    end = time.perf_counter() + seconds
    for done in range(rounds):
        if done >= 3 and time.perf_counter() > end:
            break
        for form, spent in times.items():
            spent.append(running[form].step())
        said(done + 1)
    return times


def verify(
    running: Mapping[str, FormProcess],
    notes: dict[str, str],
    bound: float = TOLERANCE,
    compare: Callable[..., float] | None = None,
) -> dict[str, float]:
    """Deviation from the first form of each one that runs; a form that fails gets a note.

    Args:
        running: Forms by name; the first that runs is what the others are compared with.
        notes: Gets the reason why a form does not run.
        bound: Largest deviation of floating outputs, relative to the largest value.
        compare: In the place of :func:`deviation`.

    Raises:
        RuntimeError: If outputs differ, or nothing runs.
    """
    compare = compare or deviation
    deviations: dict[str, float] = {}
    reference: list[np.ndarray] | None = None
    for form, process in running.items():
        outputs = process.outputs()
        if isinstance(outputs, str):
            notes[form] = f'failed: {outputs}'
            continue
        reference = reference or outputs
        deviations[form] = compare(form, outputs, reference, bound)
    if not deviations:
        raise RuntimeError(f'benchmark: no form runs: {"; ".join(notes.values())}')
    return deviations


def deviation(
    form: str, found: list[np.ndarray], expected: list[np.ndarray], bound: float = TOLERANCE
) -> float:
    """Largest deviation of outputs, relative to the largest value; of integers the share.

    Raises:
        RuntimeError: If it exceeds ``bound``, or what labels may differ by.
    """
    worst = 0.0
    for got, want in zip(found, expected, strict=True):
        same = got.shape == want.shape
        if same and want.dtype.kind == 'f':
            error, allowed = np.abs(got - want).max() / max(np.abs(want).max(), 1e-6), bound
        else:
            error, allowed = (got != want).mean() if same else np.inf, DISAGREEMENT
        if not error <= allowed:
            raise RuntimeError(
                f'benchmark: outputs of the form {form!r} differ from the first by {error:.3g}, more '
                f'than {allowed:g}; nothing was timed'
            )
        worst = max(worst, float(error))
    return worst


def detections(
    form: str, found: list[np.ndarray], expected: list[np.ndarray], bound: float = TOLERANCE
) -> float:
    """As :func:`deviation`, of a detector, whose boxes may come in another order.

    Raises:
        RuntimeError: If boxes have no counterpart, see :func:`mmlk.export.compare.detections`.
    """
    import torch

    from mmlk.export import compare

    pair = ([torch.from_numpy(value) for value in outputs] for outputs in (found, expected))
    try:
        return compare.detections(*pair, Path(form))
    except RuntimeError as error:
        raise RuntimeError(
            f'benchmark: the form {form!r} finds other objects than the first; nothing was timed'
        ) from error
