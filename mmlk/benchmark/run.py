"""Latency, throughput and memory of one model in every form in which it can run.

Every form has a process of its own, as its users have it, so that memory can be told apart and no
library changes another one's threads. The processes take their turns one after the other, and none is
timed before its outputs have been compared.
"""

from __future__ import annotations

import contextlib
import statistics
import tempfile
from dataclasses import asdict, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmlk.benchmark.forms import Task, build_graph, caller
from mmlk.benchmark.process import FormProcess, first_line
from mmlk.benchmark.report import processor, versions
from mmlk.benchmark.turns import detections, deviation, take_turns, verify

if TYPE_CHECKING:
    from mmlk.export.graph import Graph

EXPORTED = ('.onnx', '.pt2')
_FORMS = ('eager', 'folded', 'compiled', 'onnxruntime', 'openvino', 'torch.export')
_SIDES = dict(segmentor=512, classifier=224, backbone=224)
_PACKAGES = {
    'onnxruntime': ('onnx', 'onnxscript', 'onnxruntime'),
    'openvino': ('onnx', 'onnxscript', 'onnxruntime', 'openvino'),
}


def benchmark(task: Task, rounds: int, compiled: bool = False) -> dict[str, Any]:
    """Compare the outputs of all forms, then time them in turns.

    Args:
        task: Model and circumstances; ``shape`` None stands for 224 x 224, of a segmentor 512 x 512.
        rounds: Timed calls per form.
        compiled: Include torch.compile, which takes minutes to compile.

    Returns:
        ``rows``, one per form: milliseconds ``p50`` and ``p90``, ``images_per_second``,
        ``peak_megabytes`` of its process (on a GPU, of torch's allocator) and ``deviation`` from the
        first form relative to the largest value, or a ``note`` why there are none; and what they
        depend on.

    Raises:
        ValueError: If the model is unknown or of a kind that cannot be timed.
        RuntimeError: If the outputs of a form differ from those of the first.
    """
    with tempfile.TemporaryDirectory() as folder:
        forms, notes, task, about = _prepare(task, Path(folder), compiled)
        with contextlib.ExitStack() as stack:
            running = {
                form: stack.enter_context(
                    FormProcess(
                        partial(caller, form, task, Path(folder), source),
                        Path(folder) / 'image.npy',
                    )
                )
                for form, source in forms.items()
            }
            compare = detections if about['part'] == 'detector' else deviation
            deviations = verify(running, notes, compare=compare)
            times = take_turns({form: running[form] for form in deviations}, rounds)
            peaks = {form: running[form].peak() for form in times}
    rows = []
    for form in (form for form in _FORMS if form in {*forms, *notes}):
        row: dict[str, Any] = dict(form=form)
        if form in notes:
            row.update(note=notes[form])
        else:
            spent = sorted(1e3 * seconds for seconds in times[form])
            row.update(
                p50=statistics.median(spent),
                p90=float(np.percentile(spent, 90)),
                images_per_second=1e3 * task.batch_size / statistics.mean(spent),
                peak_megabytes=peaks[form],
                deviation=deviations[form],
            )
        rows.append(row)
    settings = {key: value for key, value in asdict(task).items() if key != 'unsafe_pickle'}
    return dict(
        **{**settings, **about},
        rounds=rounds,
        processor=processor(task.device),
        versions=versions(),
        rows=rows,
    )


def _prepare(
    task: Task, folder: Path, compiled: bool
) -> tuple[dict[str, Path | None], dict[str, str], Task, dict[str, Any]]:
    """Forms that can run with their file, notes on the others, the task with its shape, and facts."""
    notes: dict[str, str] = {}
    mean, std = [0.0], [1.0]
    if task.model.endswith(EXPORTED):
        from mmlk.export.describe import channel_count

        forms, description = _exported_forms(Path(task.model), task.device)
        _require_picture(task, description['part'], loaded=True)
        entry = description['input']
        fixed = entry['shape'] if entry['shape'] and entry['shape'][2] else None
        side = _SIDES.get(description['part'], 512)
        shape = tuple(fixed[2:]) if fixed else task.shape or (side, side)
        given = (task.batch_size, task.shape or shape)
        if fixed and given != (fixed[0], shape):
            raise ValueError(
                f'benchmark: {task.model} is fixed to {fixed[0]} picture of {shape[0]} x {shape[1]}; '
                f'leave --batch-size and --shape out'
            )
        whole = entry['values'] == '0 to 255'
        if entry.get('mean') and not whole:
            mean, std = entry['mean'], entry['std']
        channels = channel_count(description)
        about = dict(part=description['part'], weights='exported')
        task = replace(task, shape=shape)
    else:
        import torch

        graph, usual = build_graph(task)
        _require_picture(task, graph.part, loaded=task.checkpoint is not None)
        whole = False
        mean, std = (
            value.flatten().tolist()[:: -1 if graph.flip else 1]
            for value in (graph.mean, graph.std)
        )
        task = replace(task, shape=task.shape or usual)
        channels = graph.backbone.in_channels
        about = dict(part=graph.part, weights='loaded' if task.checkpoint else 'random')
        torch.save(graph.state_dict(), folder / 'weights.pth')
        forms = dict(eager=None, folded=None, **(dict(compiled=None) if compiled else {}))
        if not compiled:
            notes['compiled'] = 'not asked for: --compile'
        _add_exported(forms, notes, graph, task, folder)
    pixels = (
        _noise(task, channels, 255.0 if whole else 1.0)
        if task.image is None
        else _picture(task, channels, mean, std)
    )
    np.save(folder / 'image.npy', pixels)
    for form, packages in _PACKAGES.items():
        missing = [name for name in packages if find_spec(name) is None]
        # a file that is there needs no more than what runs it
        missing = [n for n in missing if n == form] if task.model.endswith('.onnx') else missing
        if missing and form in {**forms, **notes}:
            forms.pop(form, None)
            notes[form] = f'not installed: pip install {" ".join(missing)}'
    return forms, notes, task, about


def _exported_forms(path: Path, device: str) -> tuple[dict[str, Path | None], dict[str, Any]]:
    from mmlk.export.write import runner

    if not path.is_file():
        raise ValueError(f'benchmark: there is no file {str(path)!r}')
    if device != 'cpu':
        raise ValueError(f'benchmark: exported files run on the CPU here, not on {device}')
    names = ('onnxruntime', 'openvino') if path.suffix == '.onnx' else ('torch.export',)
    return dict.fromkeys(names, path), runner(path)[1]


def _add_exported(
    forms: dict[str, Path | None],
    notes: dict[str, str],
    graph: Graph,
    task: Task,
    folder: Path,
) -> None:
    """Write the ONNX file, and add the forms that run it or why there are none."""
    from mmlk.export.write import export_model

    why = ''
    if task.device != 'cpu':
        why = f'runs on CPUs here, not on {task.device}'
    elif all(find_spec(name) for name in _PACKAGES['onnxruntime']):
        try:
            export_model(graph, folder / 'model.onnx', {}, sizes=(task.shape,))
        except (ValueError, RuntimeError) as error:
            why = f'cannot be exported: {first_line(error)}'
    for form in _PACKAGES:
        if why:
            notes[form] = why
        else:
            forms[form] = folder / 'model.onnx'


def _require_picture(task: Task, part: str, loaded: bool) -> None:
    """Raise where the time depends on what is found, and nothing can be found."""
    if part == 'detector' and not (loaded and task.image and task.batch_size == 1):
        raise ValueError(
            f'benchmark: {task.model} is a detector, whose time depends on what it finds: give its '
            'checkpoint, --image FILE and one picture per call; or time its backbone (--part backbone)'
        )


def _noise(task: Task, channels: int, scale: float) -> np.ndarray:
    generator = np.random.default_rng(0)
    size = (task.batch_size, channels, *task.shape)
    noise = generator.random(size) if scale > 1 else generator.standard_normal(size)
    return (scale * noise).astype(np.float32)


def _picture(task: Task, channels: int, mean: list[float], std: list[float]) -> np.ndarray:
    """The picture of the task at its size, once per image of a call; ``mean`` and ``std`` of RGB."""
    import cv2

    from mmlk.inference.sources import decode

    if channels not in (1, 3):
        raise ValueError(f'benchmark: --image has no {channels} channels; leave it out')
    try:
        picture = decode(Path(task.image).read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f'benchmark: --image {task.image}: {error}') from error
    picture = cv2.resize(picture, task.shape[::-1])
    grey = cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)[..., None]
    values = (picture[..., ::-1] if channels == 3 else grey).astype(np.float32)
    values = ((values - np.float32(mean)) / np.float32(std)).transpose(2, 0, 1)
    return np.repeat(values[None], task.batch_size, 0)
