"""Train a grid of changes to one config, and collect its results in one table and one plot.

    python tools/sweep.py inceptionnext_branches --dry-run
    python tools/sweep.py my_sweep.py
    python tools/sweep.py my_sweep.py --gpus 4
    python tools/sweep.py my_sweep.py --list | parallel -j 2
    python tools/sweep.py my_sweep.py --index $SLURM_ARRAY_TASK_ID
    python tools/sweep.py my_sweep.py --collect

A sweep is a file (docs/analysis.md), or the name of one that comes with this package. Its runs are
trained one after the other, each in a process and a folder of its own; results.md, results.json and
results.png lie beside the folders. Started again, the tool leaves out what is finished, continues what
was interrupted and tries again what failed. --dry-run counts parameters and multiply-adds, compares them
with published ones, and trains and writes nothing. Exit status: 0 all runs finished; 1 an error, told in
one message; 3 some runs failed or are missing.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmlk.analysis import sweep_report, sweep_runs, sweeps
from mmlk.cli import arguments
from mmlk.cli.files import check_writable, complete

TOOLS = Path(__file__).resolve().parent


def training(config: Path, folder: Path, gpus: int | None) -> list[str]:
    """Command that trains a config, continuing from the checkpoints of the folder if it has some."""
    options = ['--work-dir', str(folder), '--resume']
    if gpus is None:
        return [sys.executable, str(TOOLS / 'train.py'), str(config), *options]
    start = ['env', f'PYTHON={sys.executable}', 'sh', str(TOOLS / 'dist_train.sh')]
    return [*start, str(config), str(gpus), *options]


def write(sweep: sweeps.Sweep, rows: list[sweep_report.Row], work_dir: Path, over: str) -> None:
    """Write table and plot; each file appears complete or not at all."""
    text = json.dumps(sweep_report.as_json(sweep, rows), indent=1) + '\n'
    with complete(work_dir / 'results.json') as partial:
        partial.write_text(text, encoding='utf-8')
    with complete(work_dir / 'results.md') as partial:
        partial.write_text(sweep_report.markdown(sweep, rows), encoding='utf-8')
    with complete(work_dir / 'results.png') as partial:
        sweep_report.draw(sweep, rows, over).savefig(partial, dpi=120)


def rows_of(
    sweep: sweeps.Sweep, costs: dict[str, sweeps.Cost], work_dir: Path
) -> list[sweep_report.Row]:
    """The settings with what is on record about their runs."""
    found = sweep_runs.collect(sweep.runs(), work_dir)
    return [
        sweep_report.Row(
            setting.name,
            costs[setting.name],
            sweep.published.get(setting.name, {}),
            found[setting.name],
        )
        for setting in sweep.settings
    ]


def train(run: sweeps.Run, config: Path, args: argparse.Namespace, metric: str | None) -> bool:
    """Carry out one run and say how it ended; returns whether it finished."""
    folder = args.work_dir / run.name
    print(f'{run.name}: {folder / sweep_runs.OUTPUT}', flush=True)
    try:
        status = sweep_runs.carry_out(
            config, folder, lambda *paths: training(*paths, args.gpus), metric
        )
    except sweep_runs.Busy as error:
        print(f'{run.name}: left out, {error}', flush=True)
        return False
    value = '' if status.value is None else f', {status.metric} {status.value:.2f}'
    print(f'{run.name}: {status.state}{value}{status.reason and f", {status.reason}"}', flush=True)
    return status.state == 'finished'


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('sweep', help=f'file, or one of {", ".join(sweeps.ready_sweeps())}')
    what = parser.add_mutually_exclusive_group()
    what.add_argument('--dry-run', action='store_true', help='count, compare, train nothing')
    what.add_argument('--list', action='store_true', help='print a command per run')
    what.add_argument('--index', type=int, metavar='I', help='train the run I of --list, from 0')
    what.add_argument('--collect', action='store_true', help='write table and plot, train nothing')
    parser.add_argument(
        '--gpus', type=arguments.positive, metavar='N', help='train on N processes (dist_train.sh)'
    )
    parser.add_argument(
        '--work-dir', type=Path, help='folder of runs and results (default: work_dirs/<sweep>)'
    )
    parser.add_argument(
        '--over',
        choices=sweep_report.AXES,
        default='macs',
        help='horizontal axis of the plot (default: %(default)s)',
    )
    return parser.parse_args(argv)


def listed(args: argparse.Namespace, count: int) -> list[str]:
    """A command per run, for a launcher."""
    options = ['--work-dir', str(args.work_dir)]
    options += ['--gpus', str(args.gpus)] if args.gpus else []
    start = [sys.executable, str(Path(__file__).resolve()), args.sweep, *options]
    return [shlex.join([*start, '--index', str(index)]) for index in range(count)]


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    with arguments.plain_errors('sweep.py'):
        sweep = sweeps.load_sweep(args.sweep)
        args.work_dir = args.work_dir or Path('work_dirs') / sweep.file.stem
        runs = sweep.runs()
        if args.list:
            print('\n'.join(listed(args, len(runs))))
            return 0
        if args.index is not None:
            if not 0 <= args.index < len(runs):
                raise ValueError(f'--index {args.index} is not within 0 to {len(runs) - 1}')
            run = runs[args.index]
            config = sweep_runs.write_config(sweep, run, args.work_dir)
            return 0 if train(run, config, args, sweep.metric) else 3
        # Counting builds every model, so that what is wrong with one is known before any is trained.
        costs = {setting.name: sweeps.cost(sweep, setting) for setting in sweep.settings}
        if args.dry_run:
            rows = [
                sweep_report.Row(name, cost, sweep.published.get(name, {}), ())
                for name, cost in costs.items()
            ]
            print(sweep_report.markdown(sweep, rows, trained=False), end='')
            return 0
        check_writable(args.work_dir)
        configs = [sweep_runs.write_config(sweep, run, args.work_dir) for run in runs]
        for run, config in zip(runs, () if args.collect else configs):
            train(run, config, args, sweep.metric)
        return finish(sweep, costs, args)


def finish(sweep: sweeps.Sweep, costs: dict[str, sweeps.Cost], args: argparse.Namespace) -> int:
    """Write and print the table; returns the exit status."""
    rows = rows_of(sweep, costs, args.work_dir)
    write(sweep, rows, args.work_dir, args.over)
    print(sweep_report.markdown(sweep, rows), end='')
    print(f'wrote {args.work_dir / "results.md"}, .json and .png')
    states = [status and status.state for row in rows for status in row.statuses]
    return 0 if set(states) == {'finished'} else 3


if __name__ == '__main__':
    sys.exit(main())
