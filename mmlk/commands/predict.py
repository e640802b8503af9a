"""Predict images, folders or videos, and save pictures, labels and detections.

    mmlk predict fpn_recnext_m3_ade20k photos/              published weights
    mmlk predict my_config.py photo.jpg --checkpoint work_dirs/my_config/last_checkpoint
    mmlk predict model.onnx 'photos/**/*.png' --out found   a file of "mmlk export"

MODEL is a config (file or name) with --checkpoint, the name of a published segmentor, detector or
classifier, a checkpoint that holds its config, or an exported file. SOURCE is an image, a folder, a
pattern in quotes, a video, or the number of a camera.

OUT gets pictures/ (prediction over image, with a legend), for segmentors labels/ (PNGs of class
indices from 0) and classes.json, for detectors predictions.json (COCO's layout), for classifiers
predictions.json and predictions.csv (the likeliest classes of each picture with their scores); of a
video also the predicted video, NAME.mp4. Ctrl-C ends a camera. Pictures that cannot be read, or that the
model does not take, are left out and listed, and the exit status is then 3.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from contextlib import ExitStack
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
    parser.add_argument(
        '--batch-size',
        type=arguments.positive,
        default=1,
        help='pictures of one size at once',
    )
    parser.add_argument(
        '--device', help="such as 'cpu' or 'cuda:1' (default: a GPU if there is one)"
    )
    parser.add_argument(
        '--tta', action='store_true', help='test-time augmentation as the config says'
    )
    parser.add_argument(
        '--threshold',
        type=arguments.share,
        default=0.3,
        help='least score of a drawn box (default: 0.3)',
    )
    parser.add_argument(
        '--top-k',
        type=arguments.positive,
        default=5,
        help='classes per picture, of a classifier (default: 5)',
    )
    parser.add_argument('--no-pictures', action='store_true', help='write results only')
    arguments.add_no_fold(parser)
    arguments.add_cfg_options(parser)
    arguments.add_unsafe_pickle(parser)


def run(args: argparse.Namespace) -> int:
    """Predict and write; returns the exit status."""
    with arguments.plain_errors(args.program):
        check_writable(args.out)
        frames = Frames(args.source)
        _refuse_own_pictures(frames, args.out)
        from mmlk.inference.load import load_model

        model = load_model(
            args.model,
            args.checkpoint,
            args.device,
            tta=args.tta,
            fold=not args.no_fold,
            cfg_options=args.cfg_options,
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


def _refuse_own_pictures(frames: Frames, out: Path) -> None:
    """Raise if pictures of the source lie where predictions are written to."""
    targets = [(out / name).absolute() for name in ('pictures', 'labels')]
    inside = [file for file in frames.files if any(map(file.absolute().is_relative_to, targets))]
    if inside:
        raise ValueError(
            f'{inside[0]} is a picture of the source and lies where --out {out} writes to: name another '
            '--out, or take predictions of an earlier run out of the source'
        )


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

    from mmlk.inference.prediction import save
    from mmlk.inference.video import video_file

    kind = dict(segmentation=_Labels, detection=_Objects, classification=_Classes)[model.task]
    results, count = kind(model.classes, args), 0
    columns = TextColumn('predict'), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with ExitStack() as stack:
        progress = stack.enter_context(Progress(*columns, console=Console(stderr=True)))
        bar = progress.add_task('predict', total=frames.total)
        video = None
        if frames.video and not args.no_pictures:
            name, rate = frames.video
            video = stack.enter_context(video_file(args.out / f'{name}.mp4', rate))
        try:
            for prediction in model.stream(frames, args.batch_size, skipped):
                count += 1
                results.add(prediction, count)
                drawn = prediction.above(args.threshold)
                save(drawn, args.out, not args.no_pictures, model.task == 'segmentation')
                if video:
                    video.add(drawn.picture(legend=False))
                progress.update(bar, completed=count + len(skipped))
        except KeyboardInterrupt:
            if not frames.live:
                raise
    if count:
        results.write(args.out)
    return count


class _Labels:
    """The names of what label maps hold."""

    def __init__(self, classes: tuple[str, ...], args: argparse.Namespace):
        self.classes = classes

    def add(self, prediction, number: int) -> None:
        """Label maps are files of their own."""

    def write(self, out: Path) -> None:
        _write_json(out / 'classes.json', dict(enumerate(self.classes)))


class _Objects:
    """A COCO file of all boxes and masks."""

    def __init__(self, classes: tuple[str, ...], args: argparse.Namespace):
        self.classes = classes
        self.images: list[dict] = []
        self.annotations: list[dict] = []

    def add(self, prediction, number: int) -> None:
        height, width = prediction.image.shape[:2]
        self.images.append(dict(id=number, file_name=prediction.name, height=height, width=width))
        self.annotations += prediction.coco(number, len(self.annotations) + 1)

    def write(self, out: Path) -> None:
        from mmlk.inference.prediction import coco_categories

        categories = coco_categories(self.classes)
        content = dict(images=self.images, categories=categories, annotations=self.annotations)
        _write_json(out / 'predictions.json', content)


class _Classes:
    """The likeliest classes of every picture, as JSON and as a table."""

    def __init__(self, classes: tuple[str, ...], args: argparse.Namespace):
        self.count = args.top_k
        self.found: list[dict] = []

    def add(self, prediction, number: int) -> None:
        self.found.append(dict(picture=prediction.name, classes=prediction.top(self.count)))

    def write(self, out: Path) -> None:
        _write_json(out / 'predictions.json', self.found)
        options = dict(newline='', encoding='utf-8', errors='surrogateescape')
        with complete(out / 'predictions.csv') as path, open(path, 'w', **options) as file:
            table = csv.writer(file)
            table.writerow(('picture', 'rank', 'index', 'name', 'score'))
            for entry in self.found:
                for rank, one in enumerate(entry['classes'], start=1):
                    table.writerow((entry['picture'], rank, *one.values()))


def _write_json(path: Path, content: object) -> None:
    with complete(path) as partial:
        partial.write_text(json.dumps(content))
