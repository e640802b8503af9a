"""First calls of a process from several threads at once, in many processes.

By hand: ``python -m tests.networks.first_calls --processes 1000``. Each process builds one network,
folded or not, and calls it from 8 threads that start together; one in 31 has no machine code on disk.
Results must equal, bit by bit, those of a process with one thread; the exit status must be 0.

Processes are forked from one that has imported everything. It has called neither LLVM nor an operator
and has one thread, which is checked, so a child is in the state of a new interpreter after its
imports: no cache is filled, no engine made, no lock held. It ends as every interpreter does, with its
modules torn down.
"""

from __future__ import annotations

import argparse
import functools
import gc
import os
import shutil
import sys
import tempfile
import threading
import traceback
from pathlib import Path

import torch

from mmlk.ops.jit import cache, engine
from tests.networks.families import FAMILIES, build, images

THREADS = 8
# Networks with gradients take three times as long, most of it to write kernels down.
ROUND = [(family, folded) for folded in (True, False, True, True) for family in FAMILIES]
SHARE = 2 * len(FAMILIES)
"""Processes that call every network once."""


def results(model, x, gradients: bool) -> list[torch.Tensor]:
    """Outputs, and the gradient of the images."""
    if not gradients:
        with torch.no_grad():
            return list(model(x))
    x = x.clone().requires_grad_()
    outputs = model(x)
    return [*outputs, *torch.autograd.grad([y.square().mean() for y in outputs], [x])]


def keep_alone(case, wanted: Path) -> None:
    """In a child: write what one thread computes."""
    family, folded = case
    model, x = build(family, folded).eval(), images(family, 'channels_last')
    torch.save(results(model, x, not folded), wanted)


def together(family: str, folded: bool) -> list[list[torch.Tensor]]:
    """What each of `THREADS` threads computes with one network, all beginning at once."""
    model, x = build(family, folded).eval(), images(family, 'channels_last')
    start, found = threading.Barrier(THREADS), [None] * THREADS

    def work(index):
        start.wait()
        found[index] = results(model, x, not folded)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(THREADS)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    return found


def forked(work) -> int:
    """Exit status of a child that does ``work()``, negative if a signal ended it."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.exit(status)  # not os._exit: the interpreter has to end well, too
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run_case(case, on_disk: bool, wanted: Path) -> None:
    """In a child: compare `together` with what `keep_alone` has written."""
    if not on_disk:
        os.environ[cache.ENVIRONMENT] = ''
    sys.setswitchinterval(1e-5)  # threads change places as often as possible
    want = torch.load(wanted)
    for got in together(*case):
        assert got is not None, 'a thread has failed'
        for mine, theirs in zip(got, want, strict=True):
            assert torch.equal(mine, theirs), 'threads change the result'


def main(folder: Path) -> int:
    """Number of processes that failed, at most 1; files go to ``folder``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--processes', type=int, default=SHARE)
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ[cache.ENVIRONMENT] = str(folder / 'machine_code')
    # What is there already is no child's to collect at its end: that would copy all of its memory.
    gc.collect()
    gc.freeze()
    failed = 0
    for number in range(options.processes):
        case = ROUND[number % len(ROUND)]
        assert not engine._loaded and engine._machine.cache_info().currsize == 0
        assert threading.active_count() == 1
        wanted = folder / '-'.join(map(str, case))
        if not wanted.exists():
            status = forked(functools.partial(keep_alone, case, wanted))
            assert status == 0, f'{case}: exit status {status} with one thread'
        on_disk = number % 31 != 2  # no divisor of a round: all networks come to it
        status = forked(functools.partial(run_case, case, on_disk, wanted))
        if status != 0:
            failed += 1
            print(f'process {number}, {case}, {on_disk=}: exit status {status}', flush=True)
        if (number + 1) % 50 == 0 or number + 1 == options.processes:
            print(f'{number + 1} processes, {failed} failed', flush=True)
    return min(failed, 1)


if __name__ == '__main__':
    parent, place = os.getpid(), tempfile.mkdtemp()
    try:
        result = main(Path(place))
    finally:
        if os.getpid() == parent:  # children leave by this way, too
            shutil.rmtree(place)
    raise SystemExit(result)
