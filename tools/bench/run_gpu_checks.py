"""Everything that a GPU is needed for, in one run: correctness first, then time.

    python tools/bench/run_gpu_checks.py                                 # all sections, about 10 minutes
    python tools/bench/run_gpu_checks.py --only parity limits compile     # correctness alone
    python tools/bench/run_gpu_checks.py --only operators --filter Inception

Sections: parity (output and gradients of every operator against float64, poisoned memory, repeats
equal to the bit), limits (more than 2^31 elements, other streams, CUDA graphs, other devices),
compile (full graphs, eager and compiled agree), sanitizer (compute-sanitizer over small cases),
operators, networks and classifiers (timings next to torch's, cuDNN's, timm's and the authors', which
must agree first). Each writes
``<out>/gpu_<section>.json``. The exit status is 1 if a check failed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / 'tools/bench')]

import gpu_classifiers  # noqa: E402
import gpu_correctness  # noqa: E402
import gpu_timing  # noqa: E402


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
    return facts


def sanitizer(args: argparse.Namespace) -> list[dict]:
    """`compute-sanitizer` over small cases in a process of its own."""
    tool = shutil.which('compute-sanitizer')
    if tool is None:
        return [{'check': 'sanitizer', 'result': 'skipped: compute-sanitizer is not installed'}]
    rows = []
    folder = tempfile.mkdtemp()  # the small run's results are not results
    for name in ('memcheck', 'racecheck'):
        command = [
            tool,
            '--tool',
            name,
            '--error-exitcode',
            '9',
            sys.executable,
            __file__,
            '--only',
            'parity',
            '--small',
            '--jobs',
            '1',
            '--filter',
            args.filter,
            '--seconds',
            str(args.seconds / 3),
            '--out',
            folder,
        ]
        try:
            run = subprocess.run(
                command, capture_output=True, text=True, timeout=args.seconds / 2 + 30
            )
        except subprocess.TimeoutExpired:
            rows.append(
                {'check': name, 'result': f'skipped: not done in {args.seconds / 2 + 30:.0f} s'}
            )
            continue
        tail = '\n'.join((run.stdout + run.stderr).splitlines()[-8:])
        rows.append({'check': name, 'result': 'ok' if run.returncode == 0 else f'failed: {tail}'})
    return rows


SECTIONS = {
    'parity': gpu_correctness.parity,
    'limits': gpu_correctness.limits,
    'compile': gpu_correctness.compiled,
    'sanitizer': sanitizer,
    'operators': gpu_timing.operators,
    'networks': gpu_timing.networks,
    'classifiers': gpu_classifiers.classifiers,
}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--only', choices=SECTIONS, nargs='+', default=list(SECTIONS))
    parser.add_argument('--filter', default='', help='only cases whose name holds this text')
    parser.add_argument('--small', action='store_true', help='parity: only cases of few elements')
    parser.add_argument(
        '--seconds',
        type=float,
        default=100.0,
        help='time after which a section starts no further case',
    )
    parser.add_argument(
        '--jobs',
        type=int,
        default=max(1, min(12, (os.cpu_count() or 1) - 2)),
        help='processes that compile kernels side by side',
    )
    parser.add_argument('--batch', type=int, default=128, help='images per step of the networks')
    parser.add_argument('--out', type=Path, default=ROOT / 'docs' / 'benchmarks')
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    args = parse(arguments)
    if not torch.cuda.is_available():
        print('run_gpu_checks: torch sees no CUDA device, nothing was checked', file=sys.stderr)
        return 2
    facts, failed = about(), []
    print('  '.join(f'{key} {value}' for key, value in facts.items()), flush=True)
    for name in args.only:
        print(f'--- {name}', flush=True)
        start = time.perf_counter()
        try:
            rows = SECTIONS[name](args)
        except Exception:  # one section must not cost the others their results
            traceback.print_exc()
            rows = [{'check': name, 'result': f'failed: {traceback.format_exc(limit=-3)}'}]
        bad = [row for row in rows if str(row.get('result', 'ok')).startswith('failed')]
        failed += bad
        print(
            f'{name}: {len(rows)} rows, {len(bad)} failed, {time.perf_counter() - start:.0f} s',
            flush=True,
        )
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / f'gpu_{name}.json').write_text(
            json.dumps({'about': facts, 'rows': rows}, indent=1) + '\n'
        )
    for row in failed:
        print('FAILED', row)
    return int(bool(failed))


if __name__ == '__main__':
    sys.exit(main())
