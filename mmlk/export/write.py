"""Writing a graph as ONNX or torch.export, and running the file before it counts as written."""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mmlk.cli.files import complete

KEY = 'mmlk'
"""Name of the metadata entry of a file, a JSON text."""

# Folding and the exporter's decompositions reorder float32 sums; relative to the largest output.
TOLERANCE = 1e-4
# Share of the labels that may change, where two classes are equally likely.
DISAGREEMENT = 1e-3
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
    cases = [(1, *shape)] if shape else [(batch, *size) for size in sizes for batch in (1, 2)]
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
    with torch.no_grad():
        program = torch.export.export(
            graph.folded(),
            # an example of one picture would be taken for a constant
            (images[0] if shape else images[1],),
            dynamic_shapes=None if shape else ({0: dynamic, 2: dynamic, 3: dynamic},),
        )
        _refuse_own_operators(program)
        with complete(out) as partial:
            if out.suffix == '.onnx':
                _save_onnx(program, graph.output_names, partial, description)
            else:
                extra = {f'{KEY}.json': json.dumps(description)}
                torch.export.save(program, partial, extra_files=extra)
            run = runner(partial)[0]
            return max(_deviation(run(image), _flat(graph(image)), out) for image in images)


def runner(path: Path) -> tuple[Callable[[torch.Tensor], list[torch.Tensor]], dict[str, Any]]:
    """A function that runs an exported file on the CPU, and the file's description.

    Raises:
        ValueError: If the file was not written by this package.
    """
    if path.suffix == '.onnx':
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
        text = session.get_modelmeta().custom_metadata_map.get(KEY)

        def run(image: torch.Tensor) -> list[torch.Tensor]:
            name = session.get_inputs()[0].name
            return [torch.from_numpy(value) for value in session.run(None, {name: image.numpy()})]
    else:
        extra = {f'{KEY}.json': ''}
        module = torch.export.load(path, extra_files=extra).module()
        text = extra[f'{KEY}.json']

        def run(image: torch.Tensor) -> list[torch.Tensor]:
            with torch.no_grad():
                return _flat(module(image))

    if not text:
        raise ValueError(f'{path} was not written by mmlk export: it does not describe itself')
    return run, json.loads(text)


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
    converted.rename_axes({k: v for k, v in symbols.items() if not k.isdecimal()})
    model.metadata_props[KEY] = json.dumps(description)
    converted.save(str(path), external_data=False)


def _refuse_own_operators(program: torch.export.ExportedProgram) -> None:
    names = {str(node.target) for node in program.graph.nodes}
    own = sorted(name for name in names if name.startswith('mmlk.'))
    if own:
        raise RuntimeError(f'export: {", ".join(own)} would need this package at run time')


def _deviation(found: list[torch.Tensor], expected: list[torch.Tensor], out: Path) -> float:
    worst = 0.0
    for got, want in zip(found, expected, strict=True):
        if got.shape != want.shape:
            raise RuntimeError(
                f'export: an output of {out} has shape {tuple(got.shape)}, not {tuple(want.shape)}'
            )
        if want.is_floating_point():
            error = ((got - want).abs().max() / want.abs().max().clamp(min=1e-6)).item()
            bound, kind = TOLERANCE, 'of the largest value'
        else:
            error = (got != want).float().mean().item()
            bound, kind = DISAGREEMENT, 'of the labels'
        if not error <= bound:
            raise RuntimeError(
                f'export: outputs of {out} for an image of {tuple(want.shape)} differ by '
                f'{error:.3g} {kind}, more than {bound:g}; nothing was written'
            )
        worst = max(worst, error)
    return worst


def _flat(outputs: torch.Tensor | Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
