"""Evaluate a checkpoint on the test data of its config.

In its place a file of mmlk export can stand, which then prepares the pictures itself: what is tested is
what mmlk predict does with the file.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mmengine.config import Config

from mmlk.checkpoints.errors import UnusableCheckpoint
from mmlk.cli import arguments, checks, evaluation
from mmlk.cli.checkpoint import locate
from mmlk.cli.config import load_config
from mmlk.cli.files import check_writable
from mmlk.data.errors import DataError
from mmlk.data.layout import check_datasets
from mmlk.inference.names import EXPORTED


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    arguments.add_config(parser)
    parser.add_argument(
        'checkpoint', help='file, URL, WORK_DIR/last_checkpoint, or a file of mmlk export'
    )
    parser.add_argument(
        '--out',
        help='keep predictions: a folder of PNG label maps (segmentation) '
        'or a .pkl file (detection, classification)',
    )
    parser.add_argument('--show', action='store_true', help='show predictions in a window')
    parser.add_argument('--show-dir', help='folder for pictures of truth and prediction')
    parser.add_argument('--wait-time', type=float, default=2, help='seconds per shown picture')
    parser.add_argument(
        '--tta', action='store_true', help='test-time augmentation; for ADE20K multi-scale and flip'
    )
    arguments.add_no_fold(parser)
    arguments.add_common_arguments(parser)


def prepare(args: argparse.Namespace) -> tuple[Config, list[str]]:
    """The config of the run and sentences for its log; all that can be judged without torch."""
    cfg = load_config(args.config, args.cfg_options, args.work_dir)
    check_writable(Path(cfg.work_dir))
    cfg.launcher = args.launcher
    exported = Path(args.checkpoint).suffix in EXPORTED
    cfg.load_from, cfg.resume = None if exported else locate(args.checkpoint), False
    checks.check_packages(cfg)
    checks.check_class_counts(cfg)
    notes = check_datasets(cfg, ('test_dataloader',))
    if exported:
        if args.tta:
            raise ValueError(f'{args.checkpoint} is an exported model, which takes no --tta')
        evaluation.use_exported(cfg, args.checkpoint)
    if args.show or args.show_dir:
        evaluation.draw_predictions(cfg, args.show, args.show_dir, args.wait_time)
    if args.out:
        evaluation.store_predictions(cfg, args.out)
    if args.tta:
        evaluation.enable_tta(cfg)
    return cfg, notes


def evaluate(
    cfg: Config, notes: list[str], trust: bool = False, fold: bool = True
) -> dict[str, float]:
    """Build, load and test what :func:`prepare` made ready; returns the metrics.

    Args:
        cfg: Config of the run, checked by :func:`check`.
        notes: Sentences for its log.
        trust: Let the checkpoint run code while it is read.
        fold: Test in folded form.
    """
    from mmlk.cli import device, loading
    from mmlk.cli.folding import FoldForTest

    loading.read_only_tensors(trust=trust)
    runner = device.build_runner(cfg, notes)
    loading.require_coverage(runner.model)
    runner.register_hook(loading.ClassNames())
    if fold and cfg.model.get('type') != evaluation.EXPORTED_NETWORK:  # which is folded
        runner.register_hook(FoldForTest())
    metrics = runner.test()
    device.close_process_group()
    return metrics


def check(cfg: Config) -> list[str]:
    """What has to be judged with torch at hand before :func:`evaluate`; sentences for its log."""
    from mmlk.cli import device
    from mmlk.cli.fit import check_fit

    checks.check_types(cfg)
    if cfg.model.get('type') == evaluation.EXPORTED_NETWORK:
        from mmlk.inference.tested import check_task

        check_task(cfg)
    check_fit(cfg)
    notes = device.limit_waiting(cfg) + device.adapt_to_device(cfg)
    device.open_process_group(cfg)
    return notes


def run(args: argparse.Namespace) -> int:
    """Evaluate; returns the exit status."""
    arguments.export_local_rank(args.local_rank)
    with arguments.plain_errors(args.program):
        cfg, notes = prepare(args)
        notes += check(cfg)
    with arguments.plain_errors(args.program, (UnusableCheckpoint, DataError)):
        evaluate(cfg, notes, trust=args.unsafe_pickle, fold=not args.no_fold)
    return 0
