"""Draw what a layer of a trained model sees in a picture: its feature map, or a class activation map.

    python tools/visualize_maps.py CONFIG CHECKPOINT photo.jpg --out map.png
    python tools/visualize_maps.py CONFIG CHECKPOINT photo.jpg --method gradcam --out cam.png

Feature maps (mean over the channels) of any segmentor, detector or classifier; Grad-CAM of segmentors
and classifiers, with Captum (pip install 'mmlk[analysis]').
"""

from __future__ import annotations

import argparse
import sys
from difflib import get_close_matches
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from PIL import Image

import mmlk
from mmlk.analysis.maps import class_activation, feature_map, last_stage, overlay
from mmlk.cli import arguments
from mmlk.cli.files import complete
from mmlk.inference.checkpointed import CheckpointedModel
from mmlk.inference.sources import Frames


def class_index(classes: tuple[str, ...], name: str | None) -> int | None:
    """Index of a class by its name; None for None.

    Raises:
        ValueError: If there is none, with the closest names.
    """
    if name is None:
        return None
    if name not in classes:
        close = ', '.join(get_close_matches(name, classes, n=4, cutoff=0.4) or classes[:4])
        raise ValueError(f'the model has no class {name!r}; close to it: {close}')
    return classes.index(name)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_config(parser)
    parser.add_argument('checkpoint', help='file, URL or mmlk://name')
    parser.add_argument('picture', help='image file')
    parser.add_argument('--out', type=Path, required=True, help='picture to write')
    parser.add_argument(
        '--method',
        choices=['features', 'gradcam'],
        default='features',
        help='(default: %(default)s)',
    )
    parser.add_argument('--layer', help='module (default: the last stage of the backbone)')
    parser.add_argument('--class', dest='label', help='name (default: that of the highest score)')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    with arguments.plain_errors('visualize_maps.py'):
        model = mmlk.load_model(args.config, args.checkpoint)
        if not isinstance(model, CheckpointedModel):
            raise ValueError(f'{args.config} is an exported model; name a config and a checkpoint')
        frame = next(iter(Frames(args.picture)))
        if frame.image is None:
            raise ValueError(frame.problem)
        image, layer = model.network_input(frame.image), args.layer or last_stage(model)
        if args.method == 'gradcam':
            wanted = class_index(model.classes, args.label)
            values, label = class_activation(model, image, layer, wanted)
            what = f'Grad-CAM of {model.classes[label]!r}'
        else:
            values, what = feature_map(model, image, layer), 'feature map'
        with complete(args.out) as partial:
            Image.fromarray(overlay(image, values)).save(partial)
    print(f'{what}, {layer}, {"x".join(map(str, values.shape[1:]))}: {args.out}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
