"""Predict images, folders or videos, and save pictures, labels and detections.

    mmlk predict fpn_recnext_m3_ade20k photos/              published weights
    mmlk predict my_config.py photo.jpg --checkpoint work_dirs/my_config/last_checkpoint
    mmlk predict model.onnx 'photos/**/*.png' --out found   a file of "mmlk export"

MODEL is a config (file or name) with --checkpoint, the name of a published segmentor or detector, a
checkpoint that holds its config, or an exported file. SOURCE is an image, a folder, a pattern in
quotes, a video, or the number of a camera.

OUT gets pictures/ (prediction over image, with a legend), for segmentors labels/ (PNGs of class
indices from 0) and classes.json, for detectors predictions.json (COCO's layout). Files that cannot
be read are left out and listed, and the exit status is then 3.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from mmlk.cli import arguments
from mmlk.cli.files import check_writable, complete
from mmlk.inference.sources import Frames


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    model = parser.add_argument('model', help='name, config, checkpoint or exported file')
    model.completer = arguments.complete_config
    parser.add_argument('source', help='image, folder, pattern, video or camera number')
    parser.add_argument(
        '--checkpoint', help='weights: file, URL, mmlk://name or WORK_DIR/last_checkpoint'
    )
    parser.add_argument(
        '--out', type=Path, default=Path('predictions'), help='folder (default: predictions)'
    )
    parser.add_argument('--batch-size', type=int, default=1, help='pictures of one size at once')
    parser.add_argument(
        '--device', help="such as 'cpu' or 'cuda:1' (default: a GPU if there is one)"
    )
    parser.add_argument(
        '--tta', action='store_true', help='test-time augmentation as the config says'
    )
    parser.add_argument(
        '--threshold', type=float, default=0.3, help='least score of a drawn box (default: 0.3)'
    )
    parser.add_argument('--no-pictures', action='store_true', help='write results only')
    arguments.add_unsafe_pickle(parser)


def run(args: argparse.Namespace) -> int:
    """Predict and write; returns the exit status."""
    with arguments.plain_errors(args.program):
        check_writable(args.out)
        frames = Frames(args.source)
        from mmlk.inference.load import load_model

        model = load_model(
            args.model,
            args.checkpoint,
            args.device,
            tta=args.tta,
            unsafe_pickle=args.unsafe_pickle,
        )
        skipped: list[str] = []
        count = _write(model, frames, skipped, args)
        if skipped:
            print(f'{len(skipped)} file(s) left out:', *skipped, sep='\n  ', file=sys.stderr)
        if not count:
            raise ValueError(f'no picture of {args.source} could be read')
    print(f'{count} picture(s): {args.out}')
    return 3 if skipped else 0


def _write(model, frames, skipped: list[str], args: argparse.Namespace) -> int:
    """Predict all frames and write what the flags ask for; the number of pictures."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    from mmlk.inference.prediction import coco_categories, save

    segmentation, count = model.task == 'segmentation', 0
    images, annotations = [], []
    columns = TextColumn('predict'), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task('predict', total=frames.total)
        for prediction in model.stream(frames, args.batch_size, skipped):
            count += 1
            drawn = prediction.above(args.threshold)
            save(drawn, args.out, picture=not args.no_pictures, labels=segmentation)
            if not segmentation:
                height, width = prediction.image.shape[:2]
                images.append(dict(id=count, file_name=prediction.name, height=height, width=width))
                annotations += prediction.coco(count, len(annotations) + 1)
            progress.update(bar, completed=count + len(skipped))
    if segmentation:
        content, file = dict(enumerate(model.classes)), 'classes.json'
    else:
        categories = coco_categories(model.classes)
        content = dict(images=images, categories=categories, annotations=annotations)
        file = 'predictions.json'
    if count:
        with complete(args.out / file) as path:
            path.write_text(json.dumps(content))
    return count
