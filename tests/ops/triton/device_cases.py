"""Launches the cases of the GPU checks on a device that is not there, and writes a table of them.

    python -m tests.ops.triton.device_cases --arch 90                # the timed cases, into the table
    python -m tests.ops.triton.device_cases --arch 80 --filter 7x7   # some of them
    python -m tests.ops.triton.device_cases --arch 90 --parity       # all cases: an hour, no table
    python -m tests.ops.triton.device_cases --arch 90 --parity --record   # no compilation: seconds

The table, docs/benchmarks/gpu_launches_sm<arch>.json, has for each case and pass the launches in order:
kernel, programs per axis, threads of a program, its bytes of shared memory, and registers and bytes of
stack of a thread. Without compilation they end after the threads. Rows of cases that are not run stay,
of cases that are no more are dropped. The exit status is 1 if a launch is beyond a limit.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from tests.ops.triton import fake_device

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / 'tools' / 'bench'))

import gpu_cases  # noqa: E402
from benchmark_cases import Case  # noqa: E402
from gpu_correctness import LAYOUTS, TYPES, float32_as  # noqa: E402

STACK: dict[str, int] = {}
"""Bytes of stack that a thread of a kernel may have; the others have none."""


class Point(NamedTuple):
    """A case, the name of its type, and the name of its layout."""

    case: Case
    type: str
    layout: str

    @property
    def name(self) -> str:
        shape = 'x'.join(map(str, self.case.shape))
        return f'{self.case.name} {shape} {self.type} {self.layout}'


def points(parity: bool = False) -> Iterator[Point]:
    """The timed cases, and with ``parity`` those of the comparisons in every type."""
    for entry in gpu_cases.TIMED:
        for layout in LAYOUTS:
            yield Point(entry.case, 'bfloat16', layout)
    for case in gpu_cases.PARITY if parity else ():
        for name in TYPES:
            for layout in LAYOUTS:
                yield Point(case, name, layout)


def beyond_limits(row: dict[str, list], arch: int) -> list[str]:
    """What of a row a device of ``sm_<arch>`` cannot launch, or keeps outside its registers."""
    found = []
    for which, launches in row.items():
        for kernel, grid, threads, *rest in launches:
            shared, registers, stack = rest or (0, 0, 0)
            held = -(-registers // 8) * 8 * threads  # allocated by eights
            for reason, wrong in (
                (f'a grid of {grid}', min(grid) < 1 or max(grid[1:]) > 65_535),
                # Triton's launchers count in 32 bits, and launch nothing beyond.
                (f'{math.prod(grid)} programs', math.prod(grid) >= 2**31),
                (f'{threads} threads', threads > 1024),
                (f'{shared} bytes of shared memory', shared > fake_device.SHARED_LIMIT[arch]),
                (f'{held} registers', held > 65_536),
                (f'{stack} bytes of stack', stack > STACK.get(kernel, 0)),
            ):
                if wrong:
                    found.append(f'{which}: {kernel} needs {reason}')
    return found


def table_of(arch: int) -> Path:
    return ROOT / 'docs' / 'benchmarks' / f'gpu_launches_sm{arch}.json'


def read(path: Path) -> dict[str, dict]:
    return json.loads(path.read_text()) if path.exists() else {}


def write(path: Path, rows: dict[str, dict]) -> None:
    lines = [f'{json.dumps(name)}: {json.dumps(row)}' for name, row in rows.items()]
    path.write_text('{\n' + ',\n'.join(lines) + '\n}\n')


def passes(point: Point) -> Iterator[str]:
    """Both passes of a case; yields the name of each after it."""
    dtype = TYPES[point.type]
    with torch.device('cuda'):
        leaves = gpu_cases.inputs(point.case, dtype, LAYOUTS[point.layout])
    with float32_as(tf32=point.type == 'tf32'):
        with torch.autocast('cuda', dtype, enabled=dtype != torch.float32):
            y = point.case.ours(*leaves)
        yield 'forward'
        torch.autograd.grad(y, leaves, torch.empty_like(y))
        yield 'backward'


def recorded(point: Point) -> dict[str, list]:
    """Kernel, grid and threads of the launches of a case, which are not made."""
    from mmlk.ops.triton import runtime

    row = {}
    with runtime.recording() as found:
        for name in passes(point):
            row[name] = [
                [
                    each.kernel.__name__,
                    [*each.grid, 1, 1][:3],
                    32 * each.options.get('num_warps', 4),
                ]
                for each in found
                if 0 not in each.grid
            ]
            found.clear()
    return row


def launched(point: Point, resources: dict[int, list[int]]) -> dict[str, list]:
    """What the driver got for the launches of a case; ``resources`` are of the kernels seen so far."""
    from mmlk.ops.triton import machine_code

    row: dict[str, list] = {}
    for name in passes(point):
        row[name] = []
        for each in fake_device.launches():
            if each.function not in resources:
                code = fake_device.image(each.function)
                resources[each.function] = list(machine_code.resources(code))
            row[name].append(
                [
                    each.kernel,
                    list(each.grid),
                    each.threads,
                    each.shared,
                    *resources[each.function],
                ]
            )
    return row


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--arch', type=int, choices=fake_device.SHARED_LIMIT, required=True)
    parser.add_argument('--parity', action='store_true', help='all cases, not only the timed ones')
    parser.add_argument('--filter', default='', help='only cases whose name holds this text')
    parser.add_argument('--names', nargs='+', default=[], help='only these cases')
    parser.add_argument('--record', action='store_true', help='without compilation')
    parser.add_argument('--out', type=Path, help='instead of the table in docs/benchmarks')
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    every = {each.name: each for each in points(args.parity)}
    path = args.out or (None if args.parity or args.record else table_of(args.arch))
    rows = {name: row for name, row in (read(path) if path else {}).items() if name in every}
    resources: dict[int, list[int]] = {}
    status = 0
    with tempfile.TemporaryDirectory() as folder:
        fake_device.install(args.arch, Path(folder))
        for name, point in every.items():
            if args.filter not in name or args.names and name not in args.names:
                continue
            start = time.perf_counter()
            rows[name] = recorded(point) if args.record else launched(point, resources)
            print(f'{time.perf_counter() - start:6.1f} s  {name}', flush=True)
            for each in beyond_limits(rows[name], args.arch):
                status = 1
                print(f'          {each}', flush=True)
            if path:
                write(path, {each: rows[each] for each in every if each in rows})
    return status


if __name__ == '__main__':
    sys.exit(main())
