"""Everything that a GPU is needed for, in one run of nine minutes: what matters most comes first.

    python tools/bench/run_gpu_checks.py                                  # all sections
    python tools/bench/run_gpu_checks.py --only parity exact limits       # correctness alone
    python tools/bench/run_gpu_checks.py --only operators --filter Inception
    python tools/bench/run_gpu_checks.py --budget 1800                    # three times as long

Sections, in this order, each with its share of the budget:

- parity: output and gradients of every operator in bfloat16 against float64, memory poisoned, repeats
  equal to the bit;
- kernels: compiles what is timed next, many processes at once;
- operators: times next to torch's kernels and cuDNN's, which must agree first;
- classifiers, networks: times of whole networks next to the authors' and timm's;
- exact: parity in float32, strictly and by TF32, and in float16;
- limits: more than 2^31 elements, other streams, CUDA graphs, other devices;
- compile: full graphs of operators and networks, eager and compiled agree;
- sanitizer: compute-sanitizer over small cases.

Each row is appended to ``<out>/gpu_<section>.jsonl`` as it comes, so a run that is killed loses nothing;
``gpu_<section>.json`` is written when the section ends. A task that hangs is stopped, a process whose
CUDA context is broken is replaced. Compiled kernels are kept in ``.triton`` of the checkout, unless
TRITON_CACHE_DIR names another folder: filled without a GPU (docs/gpu.md) and copied with the checkout,
it spares most of the compilation. The exit status is 1 if a check failed.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / '.triton'
sys.path[:0] = [str(ROOT), str(ROOT / 'tools/bench')]

import gpu_classifiers  # noqa: E402
import gpu_correctness  # noqa: E402
import gpu_timing  # noqa: E402
from gpu_runner import Runner, Task  # noqa: E402


def about() -> dict[str, str]:
    """Device and versions."""
    properties = torch.cuda.get_device_properties(0)
    facts = {
        'device': properties.name,
        'memory_gib': f'{properties.total_memory / 2**30:.0f}',
        'processors': str(properties.multi_processor_count),
        'torch': torch.__version__,
        'cuda': str(torch.version.cuda),
        'cudnn': str(torch.backends.cudnn.version()),
        'python': sys.version.split()[0],
    }
    for name in ('triton', 'timm', 'mmengine'):
        try:
            facts[name] = __import__(name).__version__
        except ImportError:
            facts[name] = 'not installed'
    try:
        command = ['git', '-C', str(ROOT), 'rev-parse', '--short', 'HEAD']
        facts['commit'] = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    except OSError:
        facts['commit'] = 'unknown'
    tool = shutil.which('nvidia-smi')
    if tool:
        fields = 'clocks.sm,clocks.mem,temperature.gpu,power.draw'
        command = [tool, f'--query-gpu={fields}', '--format=csv,noheader']
        facts[fields] = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    return facts


def sanitize(tool: str, words: str, seconds: float) -> dict:
    """`compute-sanitizer` over the small cases whose name holds ``words``, in one process."""
    program = shutil.which('compute-sanitizer')
    if program is None:
        return {'check': tool, 'result': 'skipped: compute-sanitizer is not installed'}
    with tempfile.TemporaryDirectory() as folder:  # the small run's results are not results
        command = [program, '--tool', tool, '--error-exitcode', '9', sys.executable, __file__]
        command += ['--only', 'parity', '--small', '--jobs', '0', '--filter', words]
        command += ['--budget', str(seconds / SECTIONS['parity'].share), '--out', folder]
        run = subprocess.run(command, capture_output=True, text=True)
    tail = '\n'.join((run.stdout + run.stderr).splitlines()[-8:])
    return {
        'check': f'{tool} {words}',
        'result': 'ok' if run.returncode == 0 else f'failed: {tail}',
    }


def sanitizer(args: argparse.Namespace) -> list[Task]:
    """Reads and writes of all kernels, races of those that have shared memory."""
    seconds = args.budget * SECTIONS['sanitizer'].share / 4
    return [
        Task(f'{tool} {words}', sanitize, (tool, words, seconds))
        for tool, words in (
            ('memcheck', args.filter),
            ('initcheck', args.filter),
            ('racecheck', '17x17'),
        )
    ]


class Section(NamedTuple):
    """A part of the run.

    Args:
        tasks: Made from the arguments of the command.
        share: Of the budget, after which it ends.
        limit: Seconds for each task.
        timed: One task at a time.
    """

    tasks: Callable[[argparse.Namespace], list[Task]]
    share: float
    limit: float
    timed: bool = False


SECTIONS = {
    'parity': Section(gpu_correctness.parity, 0.20, 60),
    'kernels': Section(gpu_timing.kernels, 0.10, 60),
    'operators': Section(gpu_timing.operators, 0.18, 60, timed=True),
    'classifiers': Section(gpu_classifiers.classifiers, 0.18, 90, timed=True),
    'networks': Section(gpu_timing.networks, 0.06, 60, timed=True),
    'exact': Section(gpu_correctness.exact, 0.10, 60),
    'limits': Section(gpu_correctness.limits, 0.06, 30, timed=True),
    'compile': Section(gpu_correctness.compiled, 0.07, 60),
    'sanitizer': Section(sanitizer, 0.05, 60),
}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--only', choices=SECTIONS, nargs='+', default=list(SECTIONS))
    parser.add_argument('--filter', default='', help='only cases whose name holds this text')
    parser.add_argument('--small', action='store_true', help='parity: only cases of few elements')
    parser.add_argument(
        '--budget', type=float, default=540.0, help='seconds of all sections together'
    )
    parser.add_argument(
        '--jobs',
        type=int,
        default=max(1, min(12, (os.cpu_count() or 1) - 2)),
        help='processes side by side where nothing is timed; 0: everything in this process',
    )
    parser.add_argument('--batch', type=int, default=64, help='images per step of the networks')
    parser.add_argument('--out', type=Path, default=ROOT / 'docs' / 'benchmarks')
    return parser.parse_args(arguments)


def _failed(row: dict) -> bool:
    return str(row.get('result', 'ok')).startswith('failed')


def run_section(name: str, args: argparse.Namespace, runner: Runner, facts: dict) -> list[dict]:
    """All rows of one section, which are in its files as well."""
    section, rows = SECTIONS[name], []
    lines = args.out / f'gpu_{name}.jsonl'

    def write(found: list[dict], file) -> None:
        for row in found:
            rows.append(row)
            file.write(json.dumps(row) + '\n')
            if _failed(row):
                print(row, flush=True)
        file.flush()
        os.fsync(file.fileno())

    with lines.open('w') as file:
        write([{'about': facts}], file)
        rows.clear()
        runner.run(
            section.tasks(args),
            functools.partial(write, file=file),
            jobs=1 if section.timed else args.jobs,
            limit=section.limit,
            cap=section.share * args.budget,
        )
    whole = {'about': facts, 'rows': rows}
    (args.out / f'gpu_{name}.json').write_text(json.dumps(whole, indent=1) + '\n')
    lines.unlink()
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse(arguments)
    if not torch.cuda.is_available():
        print('run_gpu_checks: torch sees no CUDA device, nothing was checked', file=sys.stderr)
        return 2
    os.environ.setdefault('TRITON_CACHE_DIR', str(CACHE))  # of the tasks' processes as well
    facts, summary = about(), []
    print('  '.join(f'{key} {value}' for key, value in facts.items()), flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    with Runner(args.jobs) as runner:
        for name in args.only:
            start = time.perf_counter()
            rows = run_section(name, args, runner, facts)
            seconds = time.perf_counter() - start
            results = [str(row.get('result', 'ok')).split(':')[0] for row in rows]
            counts = {each: results.count(each) for each in ('ok', 'failed', 'skipped')}
            summary.append((name, counts, seconds))
            print(f'--- {name}: {counts}, {seconds:.0f} s', flush=True)
            if name == 'operators':
                print('\n'.join(gpu_timing.table(rows)), flush=True)
    print(f'{"section":<14}{"ok":>6}{"failed":>8}{"skipped":>9}{"seconds":>9}')
    for name, counts, seconds in summary:
        print(
            f'{name:<14}{counts["ok"]:>6}{counts["failed"]:>8}{counts["skipped"]:>9}{seconds:>9.0f}'
        )
    return int(any(counts['failed'] for _, counts, _ in summary))


if __name__ == '__main__':
    sys.exit(main())
