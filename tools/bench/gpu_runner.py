"""Runs tasks in processes of their own, so that none can cost another its result.

Every task has a time limit, all tasks of a section have a cap together, and results are handed over as
they come. A process that dies, hangs, or whose CUDA context is broken is replaced by a new one.
"""

from __future__ import annotations

import collections
import math
import multiprocessing
import multiprocessing.connection
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

_READY = 'ready'


class Task(NamedTuple):
    """``function(*arguments)`` in a process of its own; it returns a row, or several.

    Args:
        name: Of the rows that say that there is no result.
        function: Importable by name.
        arguments: Can be pickled.
    """

    name: str
    function: Callable[..., dict | list[dict]]
    arguments: tuple = ()


def call(task: Task) -> list[dict]:
    """Rows of a task in this process; an error is a row as well."""
    try:
        rows = task.function(*task.arguments)
    except Exception as error:
        return [_row(task, f'failed: {type(error).__name__}: {str(error)[:500]}')]
    return rows if isinstance(rows, list) else [rows]


def _row(task: Task, result: str) -> dict:
    return {'task': task.name, 'result': result}


def _healthy() -> bool:
    """Whether CUDA still works in this process; a kernel's error stays with its context."""
    try:
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def _work(connection: multiprocessing.connection.Connection) -> None:
    """Tasks that come over ``connection``, one after the other, until it is closed."""
    connection.send(_READY)
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        rows = call(task)
        connection.send((rows, _healthy()))


class _Worker:
    """A process and the task that it works on; none while it starts, or waits for one."""

    def __init__(self):
        context = multiprocessing.get_context('spawn')
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_work, args=(other,), daemon=True)
        self.process.start()
        other.close()
        self.task: Task | None = None
        self.ready = False
        self.started = self.end = math.inf

    def give(self, task: Task, end: float) -> None:
        self.task, self.started, self.end = task, time.monotonic(), end
        self.connection.send(task)

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


class Runner:
    """Processes that are kept from one section to the next.

    Args:
        jobs: Most processes at once; 0 runs every task in this process, as debuggers need it.
    """

    def __init__(self, jobs: int):
        self.jobs = jobs
        self._workers: list[_Worker] = []

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.stop()
        self._workers = []

    def run(
        self,
        tasks: Sequence[Task],
        write: Callable[[list[dict]], None],
        *,
        jobs: int,
        limit: float,
        cap: float,
    ) -> None:
        """Run all tasks and hand their rows to ``write`` as they come.

        Args:
            tasks: Started in this order.
            write: Gets the rows of one task.
            jobs: Most processes for these tasks; 1 for those that are timed.
            limit: Seconds after which a task is stopped.
            cap: Seconds after which every task is stopped, and no other is started.
        """
        waiting, end = collections.deque(tasks), time.monotonic() + cap
        if self.jobs == 0:
            while waiting and time.monotonic() < end:
                write(call(waiting.popleft()))
        while waiting or any(each.task for each in self._workers):
            if waiting and time.monotonic() < end:
                self._start(waiting, min(jobs, self.jobs), limit, end)
            elif not any(each.task for each in self._workers):
                break
            self._collect(write, limit, end)
        for task in waiting:
            write([_row(task, 'skipped: out of time')])

    def _start(self, waiting: collections.deque, jobs: int, limit: float, end: float) -> None:
        idle = sum(each.task is None for each in self._workers)
        for _ in range(min(jobs - len(self._workers), len(waiting) - idle)):
            self._workers.append(_Worker())
        for worker in self._workers[:jobs]:
            if worker.ready and worker.task is None and waiting:
                worker.give(waiting.popleft(), min(time.monotonic() + limit, end))

    def _collect(self, write: Callable[[list[dict]], None], limit: float, end: float) -> None:
        """Wait until a process is ready, a task ends, or its time does."""
        active = [each for each in self._workers if each.task or not each.ready]
        ready = multiprocessing.connection.wait(
            [each.connection for each in active],
            max(0.0, min(end, *(each.end for each in active)) - time.monotonic()),
        )
        for worker in active:
            task, healthy = worker.task, False
            if worker.connection in ready:
                try:
                    message = worker.connection.recv()
                except (EOFError, ConnectionResetError):
                    worker.process.join()
                    status = worker.process.exitcode
                    if task is None:
                        raise RuntimeError(
                            f'gpu_runner: a process cannot start, exit status {status}; its error '
                            'stands above'
                        ) from None
                    message = (
                        [_row(task, f'failed: its process ended with exit status {status}')],
                        False,
                    )
                if message == _READY:
                    worker.ready = True
                    continue
                rows, healthy = message
            elif task and time.monotonic() >= worker.end:
                late = f'failed: stopped after {limit:g} s'
                rows = [_row(task, late if worker.end < end else 'skipped: out of time')]
            else:
                continue
            seconds = round(time.monotonic() - worker.started, 2)
            worker.task, worker.end = None, math.inf
            if not healthy:
                worker.stop()
                self._workers.remove(worker)
            write([{**row, 'seconds': seconds} for row in rows])
