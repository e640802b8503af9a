"""A trained model as a graph of standard operators, checked against the model it came from."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.runner.checkpoint import load_checkpoint
from torch import nn

from mmlk.cli.complexity import build_model
from mmlk.cli.loading import require_coverage

# Folding and the exporter's decompositions reorder float32 sums; relative to the largest output.
TOLERANCE = 1e-4


class Segmentor(nn.Module):
    """Backbone, neck and decode head: image (N, 3, H, W) to logits (N, classes, H / s, W / s).

    Normalising the image, and resizing the logits to it, are the caller's.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.backbone = model.backbone
        self.neck = model.neck if getattr(model, 'with_neck', False) else nn.Identity()
        self.decode_head = model.decode_head

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.decode_head(self.neck(self.backbone(image)))


def load_part(cfg: Config, part: str, checkpoint: str | None) -> nn.Module:
    """The part of the config's model that is to be exported, in eval mode.

    Args:
        cfg: Config of a segmentor, or of anything with a backbone.
        part: ``backbone`` or ``segmentor``.
        checkpoint: Checkpoint of the whole model; None leaves the weights random.

    Raises:
        ValueError: If the model has no such part.
    """
    model = build_model(cfg)
    if checkpoint:
        require_coverage(model)
        load_checkpoint(model, checkpoint, map_location='cpu')
    if part == 'backbone':
        return model.backbone
    if not hasattr(model, 'decode_head'):
        raise ValueError('load_part: the model has no decode_head; export its backbone')
    return Segmentor(model)


def export(module: nn.Module, image: torch.Tensor, out: Path) -> float:
    """Fold ``module`` in place, write it as ``.pt2`` or ``.onnx``, run the file and compare.

    Args:
        module: Backbone or :class:`Segmentor`, in eval mode.
        image: Example input; its shape is fixed in the graph.
        out: File to write; the suffix chooses the format.

    Returns:
        Largest difference between the file's output and the unfolded module's, relative to the
        largest output. NaN if nothing installed can run the file.

    Raises:
        ValueError: For an unknown suffix, or if a package that the format needs is missing.
        RuntimeError: If the graph holds an operator of this package, or the outputs differ.
    """
    if out.suffix not in ('.pt2', '.onnx'):
        raise ValueError(f'export: {out} must end in .pt2 (torch.export) or .onnx')
    if out.suffix == '.onnx':
        missing = [name for name in ('onnx', 'onnxscript') if find_spec(name) is None]
        if missing:
            raise ValueError(
                f'export: ONNX needs {" and ".join(missing)}: '
                f'pip install {" ".join(missing)}; or write {out.with_suffix(".pt2")}'
            )
    with torch.no_grad():
        expected = _flat(module(image))
        getattr(module, 'backbone', module).switch_to_deploy()
        program = torch.export.export(module, (image,))
        foreign = sorted(
            {
                str(node.target)
                for node in program.graph.nodes
                if str(node.target).startswith('mmlk.')
            }
        )
        if foreign:
            raise RuntimeError(f'export: {", ".join(foreign)} would need this package at run time')
        results = (
            _write_pt2(program, image, out)
            if out.suffix == '.pt2'
            else _write_onnx(program, image, out)
        )
    if results is None:
        return float('nan')
    error = max(
        ((got - want).abs().max() / want.abs().max().clamp(min=1e-6)).item()
        for got, want in zip(results, expected, strict=True)
    )
    if not error <= TOLERANCE:
        raise RuntimeError(
            f'export: outputs of {out} differ by {error:.3g} of the largest value, '
            f'more than {TOLERANCE:g}'
        )
    return error


def _write_pt2(program, image: torch.Tensor, out: Path) -> list[torch.Tensor]:
    torch.export.save(program, out)
    return _flat(torch.export.load(out).module()(image))


def _write_onnx(program, image: torch.Tensor, out: Path) -> list[torch.Tensor] | None:
    torch.onnx.export(program, (), str(out), dynamo=True)
    if find_spec('onnxruntime') is None:
        return None
    import onnxruntime

    session = onnxruntime.InferenceSession(str(out), providers=['CPUExecutionProvider'])
    outputs = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    return [torch.from_numpy(output) for output in outputs]


def _flat(outputs: torch.Tensor | Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
