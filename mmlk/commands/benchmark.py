"""Time one model in every form in which it runs.

    mmlk benchmark recnext_m3 --batch-size 4
    mmlk benchmark fpn_recnext_m3_ade20k --shape 512 512 --threads 4 --json times.json
    mmlk benchmark model.onnx
    mmlk benchmark my_config.py epoch_12.pth --image photo.jpg      a detector

MODEL is a config (file or name), a name of mmlk.create_model, a checkpoint that holds its config, or a
file of mmlk export. The forms are eager, folded (switch_to_deploy), compiled (torch.compile, with
--compile), ONNX Runtime and OpenVINO; one that is not installed is named. Their outputs are compared
before anything is timed. Each form has a process of its own, and they take turns. Without a checkpoint
the weights are random, on which the time does not depend, unless it is a detector: its time is that of
the objects which it finds in a picture.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from mmlk.cli import arguments
from mmlk.cli.files import check_writable, complete


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    model = parser.add_argument('model', help='config, name, checkpoint, .onnx or .pt2')
    model.completer = arguments.complete_config
    parser.add_argument('checkpoint', nargs='?', help='weights (default: random)')
    parser.add_argument(
        '--part',
        choices=['segmentor', 'classifier', 'detector', 'backbone'],
        help='default: the whole model',
    )
    parser.add_argument('--batch-size', type=int, default=1, help='images per call (default: 1)')
    parser.add_argument(
        '--shape',
        type=int,
        nargs=2,
        metavar=('H', 'W'),
        help="size of the images (default: the crop of a classifier's test, of a backbone 224 224, "
        'of a segmentor 512 512)',
    )
    parser.add_argument(
        '--image', help='picture to compute on, as a detector needs it (default: noise)'
    )
    parser.add_argument('--rounds', type=int, default=20, help='timed calls per form (default: 20)')
    parser.add_argument(
        '--threads', type=int, default=os.cpu_count(), help='of every form (default: %(default)s)'
    )
    parser.add_argument('--device', default='cpu', help='of the forms of torch (default: cpu)')
    parser.add_argument('--compile', action='store_true', help='include torch.compile: minutes')
    parser.add_argument('--json', type=Path, metavar='FILE', help='write all figures there as well')
    arguments.add_unsafe_pickle(parser)


def run(args: argparse.Namespace) -> int:
    """Verify, time and print; returns the exit status."""
    with arguments.plain_errors(args.program):
        for flag in ('batch_size', 'rounds', 'threads'):
            if getattr(args, flag) < 1:
                args.usage_error(f'--{flag.replace("_", "-")} must be at least 1')
        if args.json:
            check_writable(args.json.parent)
        from mmlk.benchmark import report
        from mmlk.benchmark.run import Task, benchmark

        config, checkpoint = _resolve(args.model, args.checkpoint)
        task = Task(
            args.model,
            config,
            checkpoint,
            args.part,
            args.batch_size,
            tuple(args.shape) if args.shape else None,
            args.device,
            args.threads,
            args.unsafe_pickle,
            args.image,
        )
        measured = benchmark(task, args.rounds, args.compile)
        if args.json:
            with complete(args.json) as partial:
                partial.write_text(report.dump(measured) + '\n')
    print(report.table(measured))
    return 0


def _resolve(model: str, checkpoint: str | None) -> tuple[str | None, str | None]:
    """Config and checkpoint of a model, None for what there is not."""
    from mmlk.inference import names
    from mmlk.models.names import is_model

    if Path(model).suffix in names.EXPORTED:
        if checkpoint:
            raise ValueError(f'{model} is an exported model, which takes no checkpoint')
        return None, None
    if checkpoint is None and is_model(model) and not Path(model).is_file():
        return None, None
    config, weights = names.resolve(model, checkpoint or 'none')
    if config is not None and checkpoint is None:
        return config, None
    from mmlk.cli.checkpoint import locate

    return config, locate(weights)
