"""Memory and open files over many steps whose image sizes vary.

By hand: ``python -m tests.networks.many_steps --steps 2000``. Every family trains, is evaluated and is
called folded, in turn, on images of random sizes. What a size costs for good, such as a plan kept in a
cache or a compiled loop, has an end: the second half of the steps may add next to nothing.
"""

from __future__ import annotations

import argparse
import gc
import os
import random

import torch

from mmlk.ops.jit import engine
from tests.networks.families import FAMILIES, LAYOUTS, build

SIZES = range(33, 97)
MOST = 100 << 20
"""Bytes that the second half may add: loops for rare sizes, and what the allocator does not give back.

A map kept by each step is far more."""


def resident() -> int:
    """Bytes of this process in memory."""
    gc.collect()
    with open('/proc/self/statm') as file:
        return int(file.read().split()[1]) * os.sysconf('SC_PAGE_SIZE')


def open_files() -> int:
    """Open file descriptors of this process."""
    return len(os.listdir('/proc/self/fd'))


def step(models, number: int, draw: random.Random) -> None:
    """One step of each kind of one network."""
    trained, folded = models[number % len(models)]
    size = [draw.choice(SIZES) for _ in 'hw']
    layout = draw.choice(list(LAYOUTS.values()))
    x = torch.randn(2, 3, *size).contiguous(memory_format=layout)
    outputs = trained.train()(x)
    sum(y.square().mean() for y in outputs).backward()
    trained.zero_grad()
    x = x[: draw.choice((1, 2))]
    with torch.no_grad():
        trained.eval()(x)
        folded(x)


def measure(steps: int, seed: int = 0) -> list[tuple[int, int, int]]:
    """Memory, open files and compiled loops after each quarter of the steps."""
    draw = random.Random(seed)
    models = [(build(family), build(family, True)) for family in FAMILIES]
    found = []
    for number in range(steps):
        step(models, number, draw)
        if (number + 1) % (steps // 4) == 0:
            found.append((resident(), open_files(), len(engine._loaded)))
            memory, files, loops = found[-1]
            print(
                f'{number + 1} steps: {memory / 2**20:.1f} MiB, {files} open files, '
                f'{loops} compiled loops',
                flush=True,
            )
    return found


def main() -> int:
    """1 where the second half of the steps adds memory or open files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--steps', type=int, default=28)
    _, (memory, files, _), _, (last_memory, last_files, _) = measure(parser.parse_args().steps)
    return int(last_memory - memory > MOST or last_files > files)


if __name__ == '__main__':
    raise SystemExit(main())
