"""Exported ONNX files with weights and computation in 16 or 8 bits; needs onnx and onnxruntime."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from onnxruntime import quantization
from onnxruntime.transformers.float16 import convert_float_to_float16

from mmlk.cli.files import complete
from mmlk.export.write import KEY, runner


def write_smaller(
    source: Path, out: Path, dtype: str, pictures: Sequence[torch.Tensor]
) -> tuple[float, float | None]:
    """Write a float32 file of this package with smaller numbers, and compare the two.

    Input and outputs stay float32. ``fp16`` holds weights and computes in float16. ``int8`` quantises
    the inputs and, per channel, the weights of convolutions and matrix products, which stand between
    QuantizeLinear and DequantizeLinear (QDQ); the rest computes in float32. Weights take seven bits, as
    processors without dot products of eight bits (VNNI) overflow otherwise.

    Args:
        source: ``.onnx`` file of a backbone, segmentor or classifier.
        out: File to write; it appears when it has run, not before.
        dtype: ``fp16`` or ``int8``.
        pictures: Inputs (N, 3, H, W) that the two are compared on, and whose ranges ``int8`` takes.

    Returns:
        Largest deviation, relative to the largest value of an output; and the share of pixels, or of
        pictures, whose label stays, None of a backbone.

    Raises:
        RuntimeError: If an output of the new file is no number.
    """
    before, description = runner(source)
    with complete(out) as partial:
        if dtype == 'fp16':
            _to_float16(source, partial)
        else:
            _to_int8(source, partial, pictures)
        _describe(partial, dict(description, dtype=dtype))
        after, _ = runner(partial)
        return _compare(before, after, pictures, description['part'] != 'backbone', out)


def _to_float16(source: Path, out: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # names weights that are smaller than float16 can hold
        onnx.save(convert_float_to_float16(onnx.load(source), keep_io_types=True), out)


def _to_int8(source: Path, out: Path, pictures: Sequence[torch.Tensor]) -> None:
    class Reader(quantization.CalibrationDataReader):
        """Hands the pictures over one by one."""

        def __init__(self) -> None:
            self.rest: Iterator[torch.Tensor] = iter(pictures)

        def get_next(self) -> dict[str, np.ndarray] | None:
            picture = next(self.rest, None)
            return None if picture is None else dict(image=picture.numpy())

    level = logging.root.level
    logging.root.setLevel(logging.ERROR)  # it advises to preprocess what the exporter has optimised
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            quantization.quantize_static(
                source,
                out,
                Reader(),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=['Conv', 'MatMul', 'Gemm'],
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                per_channel=True,
                reduce_range=True,
                extra_options=dict(MatMulConstBOnly=True),
            )
    finally:
        logging.root.setLevel(level)


def _describe(path: Path, description: dict) -> None:
    """Put the description into a file whose maker may have dropped it."""
    model = onnx.load(path)
    onnx.helper.set_model_props(model, {KEY: json.dumps(description)})
    onnx.save(model, path)


def _compare(before, after, pictures, labelled: bool, out: Path) -> tuple[float, float | None]:
    """See :func:`write_smaller`."""
    worst, equal, count = 0.0, 0.0, 0
    for picture in pictures:
        for got, want in zip(after(picture), before(picture), strict=True):
            if want.is_floating_point():
                if not got.isfinite().all():
                    raise RuntimeError(
                        f'export: an output of {out} is no number, since a value exceeds what the '
                        f'smaller type holds; nothing was written'
                    )
                deviation = (got - want).abs().max() / want.abs().max().clamp(min=1e-6)
                worst = max(worst, deviation.item())
            if labelled:
                old, new = (x.argmax(1) if x.is_floating_point() else x for x in (want, got))
                equal += (old == new).sum().item()
                count += old.numel()
    return worst, equal / count if labelled else None
