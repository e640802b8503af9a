"""Draw samples of a config's data set with their labels, as the pipeline hands them to the model.

    python tools/browse_dataset.py configs/upernet_inceptionnext_t_ade20k.py --output-dir browse
    python tools/browse_dataset.py CONFIG --output-dir browse --mode original --max-number 50

Writes a picture per sample, and sheet.png with small copies of all. No window is opened.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmengine.runner import set_random_seed
from PIL import Image

import mmlk  # noqa: F401  (resolves mmlk:: paths from here on)
from mmlk.analysis.samples import MODES, Drawn, build_dataset, contact_sheet, draw_samples
from mmlk.cli import arguments, checks
from mmlk.cli.config import load_config
from mmlk.cli.files import check_writable, complete
from mmlk.data.layout import check_datasets

COLUMNS, CELL = 4, 320


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_config(parser)
    parser.add_argument(
        '--output-dir',
        type=Path,
        help='folder of the pictures (default: <work_dir of the config>/browse)',
    )
    parser.add_argument(
        '--mode',
        choices=MODES,
        default='transformed',
        help='after the whole pipeline, or as the files are (default: %(default)s)',
    )
    parser.add_argument(
        '--phase', choices=['train', 'val', 'test'], default='train', help='whose data set'
    )
    parser.add_argument(
        '--max-number', type=int, default=16, help='samples to draw (default: %(default)s)'
    )
    parser.add_argument('--seed', type=int, default=0, help='of the random transforms')
    parser.add_argument(
        '--not-show', action='store_true', help='accepted and always so: pictures are written'
    )
    arguments.add_cfg_options(parser)
    args = parser.parse_args(argv)
    if args.max_number < 1:
        parser.error(f'--max-number {args.max_number}: draw at least one sample')
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    with arguments.plain_errors('browse_dataset.py'):
        cfg = load_config(args.config, args.cfg_options)
        folder = args.output_dir or Path(cfg.work_dir) / 'browse'
        check_writable(folder)
        checks.check_packages(cfg)
        checks.check_types(cfg)
        loader = f'{args.phase}_dataloader'
        check_datasets(cfg, (loader,))
        set_random_seed(args.seed)
        dataset = build_dataset(cfg, loader, args.mode)
        drawn = []
        for index, (name, picture) in enumerate(
            draw_samples(cfg, loader, dataset, args.max_number)
        ):
            drawn.append(Drawn(f'{index:05d}_{name}', picture))
            with complete(folder / f'{drawn[-1].name}.png') as partial:
                Image.fromarray(picture).save(partial)
        if not drawn:
            raise ValueError(f'the data set of {loader} is empty')
        with complete(folder / 'sheet.png') as partial:
            contact_sheet(drawn, COLUMNS, CELL).save(partial)
    print(f'{len(drawn)} of {len(dataset)} samples, {args.mode}: {folder}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
