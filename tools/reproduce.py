"""Reproduce a published row: evaluate the authors' network, or print how to train it.

    python tools/reproduce.py fpn_recnext_m3_ade20k --published
    python tools/reproduce.py fpn_recnext_m3_ade20k --from-pretrained

Both first say what is missing: data (files and number of images), disk, memory. ``--published`` then
downloads the authors' trained network (a broken download goes on where it stopped), evaluates it as the
row was evaluated, and holds what it measures against what was published. Exit status: 0 if every
figure is reproduced, 1 if not, or if something is missing.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from mmengine.config import Config

import mmlk
from mmlk.analysis import costs
from mmlk.checkpoints import fetch, zoo
from mmlk.cli import arguments
from mmlk.cli.config import load_config
from mmlk.cli.published import dense_rows, published_facts
from mmlk.commands import test
from mmlk.data.layout import DataError, check_datasets
from mmlk.data.releases import RELEASES

TOLERANCE = 0.1
"""Points: published figures are rounded to 0.1, and decoders of JPEG differ by less than the rest."""
METRICS = {
    'mIoU': ('mIoU', 1),
    'aAcc': ('aAcc', 1),
    'mAcc': ('mAcc', 1),
    'box AP': ('coco/bbox_mAP', 100),
    'mask AP': ('coco/segm_mAP', 100),
}
"""Published name: name and factor of what the evaluator reports."""
MULTI_SCALE = '(ms+flip)'
GIGABYTE = 1e9


def find_row(name: str) -> dict:
    """The published row called ``name``.

    Raises:
        ValueError: If there is none, or no result of it was published.
    """
    rows = {key: row for key, row in dense_rows().items() if row.get('Results')}
    if name not in rows:
        close = ', '.join(get_close_matches(name, rows, n=4, cutoff=0.4) or sorted(rows))
        raise ValueError(f'{name!r} is no row with a published result; close to it: {close}')
    return rows[name]


def wanted(row: Mapping) -> dict[str, float]:
    """Published figures of a row by name."""
    return {key: value for result in row['Results'] for key, value in result['Metrics'].items()}


def missing(row: Mapping, cfg: Config, trains: bool, file: zoo.Entry | None) -> Iterator[str]:
    """What the run needs and this machine has not, a sentence each."""
    loaders = ('train_dataloader', 'test_dataloader') if trains else ('test_dataloader',)
    try:
        check_datasets(cfg, loaders)
    except DataError as error:
        yield str(error)
    else:
        yield from too_few(row, cfg, loaders)
    # Weights and the two moments of AdamW, four bytes each, which authors' files may hold as well.
    size = row['Metadata']['Parameters'] * 1e6 * 12
    if trains:
        yield from no_room(Path(cfg.work_dir), 3 * size, 'the last two checkpoints and the best')
    elif not fetch.cached(f'{zoo.SCHEME}{file.name}'):
        yield from no_room(Path(torch.hub.get_dir()), size, f'{file.name} (set TORCH_HOME)')
    need, there = 2 * GIGABYTE + 2 * size, available_memory()
    if there is not None and there < need:
        yield (
            f'memory: {there / GIGABYTE:.1f} GB are available; a process needs about '
            f'{need / GIGABYTE:.1f} GB'
        )


def too_few(row: Mapping, cfg: Config, loaders: tuple[str, ...]) -> Iterator[str]:
    """Folders whose number of images is not that of the release."""
    release = RELEASES[row['Metadata']['Training Data'].lower()]
    for loader in loaders:
        inside, expected = release.images[loader]
        folder = Path(cfg[loader].dataset.data_root) / inside
        count = sum(path.suffix == '.jpg' for path in folder.iterdir())
        if count != expected:
            yield f'{folder} holds {count} images, the release has {expected}'


def no_room(folder: Path, size: float, what: str) -> Iterator[str]:
    """That ``size`` bytes do not fit beside ``folder``, which may not be there yet."""
    folder = folder.absolute()
    there = next(each for each in (folder, *folder.parents) if each.exists())
    free = shutil.disk_usage(there).free
    if free < size:
        yield (
            f'disk: {folder} has {free / GIGABYTE:.1f} GB left; up to {size / GIGABYTE:.1f} GB are '
            f'needed for {what}'
        )


def available_memory() -> float | None:
    """Bytes of main memory that are available, None where the system does not say."""
    path = Path('/proc/meminfo')
    lines = path.read_text().splitlines() if path.is_file() else []
    found = [line.split()[1] for line in lines if line.startswith('MemAvailable:')]
    return 1024 * float(found[0]) if found else None


def measure(args: argparse.Namespace, checkpoint: Path, figures: Mapping) -> dict[str, float]:
    """What the network measures for each of the published figures, in their unit."""
    measured = {}
    for multi_scale in (False, True):
        names = [name for name in figures if name.endswith(MULTI_SCALE) == multi_scale]
        if not names:
            continue
        settings = dict(vars(args), checkpoint=str(checkpoint), tta=multi_scale)
        cfg, notes = test.prepare(argparse.Namespace(**settings))
        metrics = test.evaluate(cfg, notes + test.check(cfg), fold=False)
        for name in names:
            key, factor = METRICS[name.removesuffix(MULTI_SCALE)]
            measured[name] = factor * float(metrics[key])
    return measured


def verdict(figures: Mapping, measured: Mapping, comparable: bool) -> tuple[str, bool]:
    """The table of published and measured figures, and whether all are reproduced."""
    lines = [f'{"figure":<16}{"published":>10}{"measured":>10}{"change":>9}  verdict']
    every = True
    for name, published in figures.items():
        change = measured[name] - published
        good = comparable and abs(change) <= TOLERANCE + 1e-9
        word = 'reproduced' if good else 'NOT reproduced' if comparable else 'not comparable'
        lines.append(f'{name:<16}{published:>10g}{measured[name]:>10.2f}{change:>+9.2f}  {word}')
        every &= good
    lines.append(f'tolerance {TOLERANCE} points')
    return '\n'.join(lines), every


def training_commands(name: str, row: Mapping, data_root: str | None) -> Iterator[str]:
    """Commands that train the row on 8, 4 and 1 GPU with its batch size, then test it."""
    data, options = row['Metadata'], [f'data_root={data_root}'] if data_root else []
    config, batch = row['Config'], data['Batch Size']
    usual = batch // data['GPUs']
    for gpus in (8, 4, 1):
        each = min(usual, batch // gpus)
        steps = batch // (gpus * each)
        start = (
            f'sh tools/dist_train.sh {config} {gpus}'
            if gpus > 1
            else f'python tools/train.py {config}'
        )
        changed = [f'train_dataloader.batch_size={each}'] if each != usual else []
        overrides = [*options, *changed]
        yield f'# {gpus} GPU{"s" * (gpus > 1)}: {each} images each' + (
            f', {steps} steps accumulated; norms see {gpus * each} images, not {batch}'
            if steps > 1
            else ''
        )
        yield ' '.join(
            [start]
            + ([f'--accumulate {steps}'] if steps > 1 else [])
            + (['--cfg-options', *overrides] if overrides else [])
        )
    yield '# afterwards'
    test_options = f' --cfg-options {" ".join(options)}' if options else ''
    for flag in ('', ' --tta'):
        if any(key.endswith(MULTI_SCALE) == bool(flag) for key in wanted(row)):
            yield (
                f'python tools/test.py {config} work_dirs/{name}/last_checkpoint{flag}{test_options}'
            )


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('name', help='a row of the results: its config without .py')
    way = parser.add_mutually_exclusive_group()
    way.add_argument('--published', action='store_true', help="evaluate the authors' network")
    way.add_argument('--from-pretrained', action='store_true', help='print how to train it')
    parser.add_argument('--data-root', help='where the data set lies')
    parser.add_argument(
        '--subset', action='store_true', help='go on although images are missing; no verdict then'
    )
    arguments.add_common_arguments(parser)
    args = parser.parse_args(argv)
    if not (args.published or args.from_pretrained):
        parser.error('say --published or --from-pretrained')
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    with arguments.plain_errors('reproduce.py'):
        row = find_row(args.name)
        file = None
        if args.published:
            source = published_facts()['Checkpoints'].get(args.name)
            if source is None:
                raise ValueError(
                    f'the authors published no trained network of {args.name}; --from-pretrained '
                    'prints how to train it'
                )
            file = zoo.find(source)
        if args.data_root:
            args.cfg_options = dict(args.cfg_options or {}, data_root=args.data_root)
        args.config = mmlk.config_path(args.name)
        args.work_dir = args.work_dir or f'work_dirs/reproduce/{args.name}'
        args.out = args.show = args.show_dir = args.wait_time = None
        cfg = load_config(args.config, args.cfg_options, args.work_dir)
        lacks = list(missing(row, cfg, args.from_pretrained, file))
        counts = [each for each in lacks if 'the release has' in each]
        for each in lacks:
            print(f'missing: {each}')
        if args.from_pretrained:
            print('\n'.join(f'# {each}' for each in costs.sentences(row)))
            print('\n'.join(training_commands(args.name, row, args.data_root)))
            return int(bool(lacks))
        if lacks != counts or (counts and not args.subset):
            return 1
        note = f' ({file.note})' if file.note else ''
        print(f'{file.name}: {file.url}{note}')
        checkpoint = fetch.locate(f'{zoo.SCHEME}{file.name}')
        print(f'{checkpoint}: sha256 {fetch.sha256_of(checkpoint)}')
    figures = wanted(row)
    told, good = verdict(figures, measure(args, checkpoint, figures), not counts)
    print(f'{args.name}: {row["Results"][0]["Source"]}\n{told}')
    return int(not good)


if __name__ == '__main__':
    sys.exit(main())
