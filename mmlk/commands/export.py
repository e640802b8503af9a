"""Write a model as ONNX or torch.export, verified against the original.

    mmlk export my_config.py work_dirs/my_config/last_checkpoint --out model.onnx
    mmlk export model-0123abcd.pth --out model.onnx --normalize --output labels
    mmlk export model-0123abcd.pth --out model.onnx --dtype int8 --calibrate photos/

MODEL is a config (file or name), a published model's name, or a checkpoint that holds its config.
The file holds the folded network in standard operators, for any number of pictures of any size,
with its weights, class names and preparation inside. Input "image" is (N, 3, H, W), RGB, normalised,
or with --normalize from 0 to 255. Before the file appears it is run at three sizes with one picture
and with two, and compared with the unfolded network. A detector takes one picture at a time.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from mmlk.cli import arguments
from mmlk.cli.files import check_writable

OUTPUTS = ('logits', 'probabilities', 'labels')
DTYPES = ('fp16', 'int8')
# Pictures that --calibrate takes at most, evenly spaced.
CALIBRATION = 100


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    model = parser.add_argument('model', help='config, name, or checkpoint that holds its config')
    model.completer = arguments.complete_config
    parser.add_argument(
        'checkpoint', nargs='?', help='weights of the whole model (default: the published ones)'
    )
    parser.add_argument('--out', type=Path, required=True, help='.onnx, or .pt2 (torch.export)')
    parser.add_argument(
        '--part',
        choices=['segmentor', 'classifier', 'detector', 'backbone'],
        help='what to export (default: the whole model)',
    )
    parser.add_argument(
        '--shape',
        type=arguments.positive,
        nargs=2,
        metavar=('H', 'W'),
        help='fix the graph to one picture of this size',
    )
    parser.add_argument(
        '--normalize', action='store_true', help='take RGB from 0 to 255 and normalise inside'
    )
    parser.add_argument(
        '--output',
        choices=OUTPUTS,
        help='of a segmentor: logits at the stride of the head, or probabilities or labels at the '
        'size of the image; of a classifier: one row or label per picture (default: logits)',
    )
    parser.add_argument(
        '--dtype',
        choices=DTYPES,
        help='weights and computation in fewer bits, .onnx only (default: float32)',
    )
    parser.add_argument(
        '--calibrate',
        metavar='FOLDER',
        help=f'pictures, at most {CALIBRATION} of them, from which int8 takes its ranges, and on '
        f'which the change of the labels is measured',
    )
    parser.add_argument(
        '--random', action='store_true', help='random weights, to try a graph without a checkpoint'
    )
    arguments.add_cfg_options(parser)
    arguments.add_unsafe_pickle(parser)


def run(args: argparse.Namespace) -> int:
    """Export and verify; returns the exit status."""
    with arguments.plain_errors(args.program):
        check_writable(args.out.parent)
        from mmlk.export.write import check_target, export_model

        check_target(args.out)
        frames = _calibration(args)
        graph, description = _build(args)
        if args.dtype:
            _export_smaller(graph, description, frames, args)
            return 0
        deviation = export_model(graph, args.out, description, args.shape)
    at = f'{args.shape[0]} x {args.shape[1]}, one picture' if args.shape else 'any size and number'
    at = at if args.shape or graph.any_batch else 'one picture of any size'
    of = 'of the labels' if args.output == 'labels' else 'of the largest value'
    print(
        f'{args.out}: {graph.part} for {at}, {args.out.stat().st_size / 1e6:.1f} MB; '
        f'deviates from the original by {deviation:.1e} {of}'
    )
    if args.random:
        print('The weights are random.', file=sys.stderr)
    return 0


def _calibration(args: argparse.Namespace) -> list[Any]:
    """The pictures of ``--calibrate``, read before anything is computed."""
    if args.calibrate and not args.dtype:
        raise ValueError('--calibrate belongs to --dtype')
    if args.dtype and args.out.suffix != '.onnx':
        raise ValueError(f'--dtype {args.dtype} is for .onnx files, not {args.out}')
    if args.dtype == 'int8' and not args.calibrate:
        raise ValueError('--dtype int8 needs --calibrate FOLDER, pictures like those in use')
    if not args.calibrate:
        return []
    from mmlk.inference.sources import Frames, pictures_below

    files = pictures_below(Path(args.calibrate))
    if not files:
        raise ValueError(f'--calibrate {args.calibrate} is no folder with pictures')
    frames = list(Frames(files[:: -(-len(files) // CALIBRATION)]))
    for frame in frames:
        if frame.problem:
            raise ValueError(f'--calibrate {args.calibrate}: {frame.problem}')
    return [frame.image for frame in frames]


def _export_smaller(graph, description: dict, frames: list[Any], args: argparse.Namespace) -> None:
    """Write the verified float32 file elsewhere, and make the smaller one of it."""
    import torch

    from mmlk.export.smaller import write_smaller
    from mmlk.export.write import export_model
    from mmlk.inference.exported import prepare

    if graph.part == 'detector':
        raise ValueError(f'--dtype {args.dtype} is for segmentors, classifiers and backbones')
    with tempfile.TemporaryDirectory() as folder:
        full = Path(folder) / 'float32.onnx'
        export_model(graph, full, description, args.shape)
        pictures = [prepare(image, description)[None] for image in frames]
        on = f'{len(pictures)} picture(s)'
        if not pictures:
            scale, size = (255 if graph.normalize else 1), args.shape or (256, 256)
            generator = torch.Generator().manual_seed(0)
            noise = torch.rand(1, graph.backbone.in_channels, *size, generator=generator)
            pictures, on = [noise * scale], 'noise'
        worst, equal = write_smaller(full, args.out, args.dtype, pictures)
        sizes = [path.stat().st_size / 1e6 for path in (args.out, full)]
    of = 'pictures' if graph.part == 'classifier' else 'pixels'
    kept = '' if equal is None else f'{equal:.2%} of the {of} keep their label, '
    print(
        f'{args.out}: {graph.part} in {args.dtype}, {sizes[0]:.1f} MB instead of {sizes[1]:.1f}; '
        f'on {on} {kept}outputs deviate by at most {worst:.1e} of the largest value'
    )


def _build(args: argparse.Namespace):
    """The graph that the flags ask for, and its description."""
    from mmlk.cli.checkpoint import locate
    from mmlk.export.describe import describe
    from mmlk.export.detector import DetectorGraph
    from mmlk.export.graph import Graph, part_of
    from mmlk.inference import checkpointed, names

    if args.random and args.checkpoint:
        raise ValueError('--random takes no checkpoint')
    config, weights = names.resolve(args.model, 'none' if args.random else args.checkpoint)
    network, cfg, classes = checkpointed.network_and_classes(
        config, None if args.random else locate(weights), args.unsafe_pickle, args.cfg_options
    )
    part = args.part or part_of(network)
    if args.output and part in ('backbone', 'detector'):
        raise ValueError(f'--output {args.output} is for segmentors and classifiers, not a {part}')
    if part == 'detector':
        graph = DetectorGraph(network, cfg, args.normalize)
    else:
        graph = Graph(network, cfg, part, args.normalize, args.output or 'logits')
    graph.eval()
    return graph, describe(graph, cfg, classes, args.shape)
