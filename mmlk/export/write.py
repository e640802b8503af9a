"""Writing a graph as ONNX or torch.export, and running the file before it counts as written."""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mmlk.cli.files import complete, write_by
from mmlk.data.files import first_line

KEY = 'mmlk'
"""Name of the metadata entry of a file, a JSON text."""

SUFFIXES = ('.onnx', '.pt2')
# Sizes that every dynamic file is run at, with one picture and with two: no two sides are equal, and
# one size is no multiple of anything.
SIZES = ((160, 192), (131, 227), (224, 128))
_NEEDED = ('onnx', 'onnxscript', 'onnxruntime')


def check_target(out: Path) -> None:
    """Raise if ``out`` has an unknown suffix, or packages for its format are missing.

    Raises:
        ValueError: With the remedy.
    """
    if out.suffix not in SUFFIXES:
        raise ValueError(f'export: {out} must end in .onnx or .pt2 (torch.export)')
    if out.is_dir():
        raise ValueError(f'export: {out} is a folder; name a file')
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if out.suffix == '.onnx' and missing:
        raise ValueError(
            f'export: ONNX needs {" and ".join(missing)}: pip install {" ".join(missing)}; '
            f'or write {out.with_suffix(".pt2")}'
        )


def export_model(
    graph: nn.Module,
    out: Path,
    description: dict[str, Any],
    shape: tuple[int, int] | None = None,
    sizes: Sequence[tuple[int, int]] = SIZES,
) -> float:
    """Write the folded ``graph``, run the file, and compare it with the unfolded ``graph``.

    Args:
        graph: A :class:`~mmlk.export.graph.Graph` in eval mode; it stays as it is.
        out: ``.onnx`` or ``.pt2`` file. It appears when it has passed, not before.
        description: Metadata of the file, from :func:`~mmlk.export.describe.describe`.
        shape: Height and width that the graph is fixed to, for one picture; None leaves batch and
            size open.
        sizes: Heights and widths at which an open graph is compared, each with one picture and two.

    Returns:
        Largest deviation, relative to the largest value of an output; of labels the share that
        differs.

    Raises:
        ValueError: If the format is unknown or its packages are missing.
        RuntimeError: If the graph cannot be exported, holds an operator of this package, or the
            file's outputs deviate.
    """
    check_target(out)
    batches = (1, 2) if graph.any_batch and not shape else (1,)
    cases = [(batch, *size) for size in ([shape] if shape else sizes) for batch in batches]
    generator = torch.Generator().manual_seed(0)
    scale = 255.0 if graph.normalize else 1.0
    images = [
        (torch.rand if graph.normalize else torch.randn)(
            batch, graph.backbone.in_channels, height, width, generator=generator
        )
        * scale
        for batch, height, width in cases
    ]
    dynamic = torch.export.Dim.DYNAMIC
    axes = {index: dynamic for index in ((0, 2, 3) if graph.any_batch else (2, 3))}
    with torch.no_grad():
        program = torch.export.export(
            graph.folded(),
            # of an open batch, an example of one picture would be taken for a constant
            (images[len(batches) - 1],),
            dynamic_shapes=None if shape else (axes,),
        )
        _refuse_own_operators(program)
        with complete(out) as partial:
            if out.suffix == '.onnx':
                _save_onnx(program, graph.output_names, partial, description)
            else:
                extra = {f'{KEY}.json': json.dumps(description)}
                write_by(lambda file: torch.export.save(program, file, extra_files=extra), partial)
            run = runner(partial)[0]
            return max(graph.compare(run, image, out) for image in images)


def runner(path: Path) -> tuple[Callable[..., list[torch.Tensor]], dict[str, Any]]:
    """A function that runs an exported file on the CPU, and the file's description.

    The function takes the image, and of a detector also ``score_threshold``, the least score of a box.
    It raises ValueError where the graph does not take an image of that shape.

    Raises:
        ValueError: If the file is damaged or was not written by this package, or its format needs a
            package that is not installed.
    """
    opened = _open_onnx if path.suffix == '.onnx' else _open_program
    try:
        call, text = opened(path)
    except ModuleNotFoundError as error:
        raise ValueError(f'{path} needs {error.name}: pip install {error.name}') from error
    except Exception as error:  # both libraries raise errors of many kinds
        raise ValueError(
            f'{path} cannot be read: it is damaged, of another format or too new for the installed '
            f'libraries ({first_line(error)}); export it again'
        ) from error
    if not text:
        raise ValueError(f'{path} was not written by mmlk export: it does not describe itself')

    def run(image: torch.Tensor, **scalars: float) -> list[torch.Tensor]:
        try:
            return call(image, scalars)
        except Exception as error:
            raise ValueError(
                f'{path} does not take an image of shape {tuple(image.shape)}: {first_line(error)}'
            ) from error

    return run, json.loads(text)


def _open_onnx(path: Path) -> tuple[Callable, str | None]:
    """A function of image and scalars, and the description, of an ONNX file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # it warns that a threshold is an input with a default
    session = onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])

    def call(image: torch.Tensor, scalars: Mapping[str, float]) -> list[torch.Tensor]:
        feed = {session.get_inputs()[0].name: image.numpy()}
        feed.update({name: np.array(value, np.float32) for name, value in scalars.items()})
        return [torch.from_numpy(value) for value in session.run(None, feed)]

    return call, session.get_modelmeta().custom_metadata_map.get(KEY)


def _open_program(path: Path) -> tuple[Callable, str]:
    """The same of a file of torch.export."""
    with contextlib.suppress(ImportError):  # brings the operators of a detector
        import torchvision  # noqa: F401
    extra = {f'{KEY}.json': ''}
    module = torch.export.load(path, extra_files=extra).module()

    def call(image: torch.Tensor, scalars: Mapping[str, float]) -> list[torch.Tensor]:
        own = {name: module.get_buffer(name).clone() for name in scalars}
        try:
            with torch.no_grad():
                for name, value in scalars.items():
                    module.get_buffer(name).fill_(value)
                return _flat(module(image))
        finally:
            for name, value in own.items():
                module.get_buffer(name).copy_(value)

    return call, extra[f'{KEY}.json']


def _save_onnx(
    program: torch.export.ExportedProgram,
    outputs: list[str],
    path: Path,
    description: dict[str, Any],
) -> None:
    """One file, with named input, outputs and axes."""
    # the exporter reports its progress on stdout and warns about its own parts
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        converted = torch.onnx.export(
            program, (), input_names=['image'], output_names=outputs, dynamo=True, verbose=False
        )
    model = converted.model
    axes = dict(enumerate(('batch', None, 'height', 'width')))
    symbols = {str(d): axes[i] for i, d in enumerate(model.graph.inputs[0].shape) if axes[i]}
    if 'score_threshold' in model.graph.initializers:
        # an input with a default, so that a program may ask for more or fewer boxes
        model.graph.inputs.append(model.graph.initializers['score_threshold'])
        symbols[str(model.graph.outputs[0].shape[0])] = 'objects'
    converted.rename_axes({k: v for k, v in symbols.items() if not k.isdecimal()})
    model.metadata_props[KEY] = json.dumps(description)
    converted.save(str(path), external_data=False)


def _refuse_own_operators(program: torch.export.ExportedProgram) -> None:
    names = {str(node.target) for node in program.graph.nodes}
    own = sorted(name for name in names if name.startswith('mmlk.'))
    if own:
        raise RuntimeError(f'export: {", ".join(own)} would need this package at run time')


def _flat(outputs: torch.Tensor | Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
