"""Train a model from a config."""

from __future__ import annotations

import argparse
from pathlib import Path

from mmengine.config import Config

from mmlk.checkpoints.errors import UnusableCheckpoint
from mmlk.cli import arguments, batch, checks
from mmlk.cli.checkpoint import check_weights, set_resume
from mmlk.cli.config import load_config
from mmlk.cli.files import check_writable
from mmlk.data.errors import DataError
from mmlk.data.layout import check_datasets


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    arguments.add_config(parser)
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='continue from a checkpoint; bare or "auto": from the newest whole '
        'one of the work folder',
    )
    parser.add_argument('--amp', action='store_true', help='mixed precision (needs a GPU)')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate by effective / recipe batch size',
    )
    parser.add_argument(
        '--accumulate',
        type=arguments.positive,
        metavar='N',
        help='step the optimizer every N iterations, and stretch the schedule',
    )
    arguments.add_common_arguments(parser)


def prepare(args: argparse.Namespace) -> tuple[Config, list[str]]:
    """The config of the run and sentences for its log; all that can be judged without torch."""
    cfg = load_config(args.config, args.cfg_options, args.work_dir)
    check_writable(Path(cfg.work_dir))
    cfg.launcher = args.launcher
    checks.check_packages(cfg)
    checks.check_class_counts(cfg)
    notes = check_datasets(cfg, ('train_dataloader', 'val_dataloader'))
    if args.accumulate is not None:
        batch.accumulate(cfg, args.accumulate)
    if args.auto_scale_lr:
        batch.enable_lr_scaling(cfg)
    notes += set_resume(cfg, args.resume)
    check_weights(cfg)
    return cfg, notes


def run(args: argparse.Namespace) -> int:
    """Train; returns the exit status."""
    arguments.export_local_rank(args.local_rank)
    with arguments.plain_errors(args.program):
        cfg, notes = prepare(args)
        from mmlk.cli import device, loading
        from mmlk.cli.fit import check_fit
        from mmlk.cli.hooks import bring_hooks

        checks.check_types(cfg)
        check_fit(cfg)
        notes += bring_hooks(cfg)
        if args.amp:
            notes.append(device.enable_amp(cfg))
        notes += device.find_unused_parameters(cfg)
        notes += device.limit_waiting(cfg)
        notes += device.adapt_to_device(cfg)
        batch.allow_single_images(cfg, device.norms_are_synchronised(cfg))
        device.open_process_group(cfg)
    loading.read_only_tensors(trust=args.unsafe_pickle)
    with arguments.plain_errors(args.program, (ValueError,)):
        runner = device.build_runner(cfg, notes)
    loading.refuse_classifiers(runner.model)
    statement, departs = batch.batch_statement(cfg, runner.world_size)
    (runner.logger.warning if departs else runner.logger.info)(statement)
    with arguments.plain_errors(args.program, (UnusableCheckpoint, DataError)):
        runner.train()
    device.close_process_group()
    return 0
