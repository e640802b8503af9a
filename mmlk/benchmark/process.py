"""One form in a process of its own."""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from mmlk.benchmark.forms import Task, caller


class FormProcess:
    """One form in a process of its own, which computes when it is asked to."""

    def __init__(self, form: str, task: Task, folder: Path, source: Path | None):
        context = multiprocessing.get_context('spawn')
        self._pipe, other = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(other, form, task, folder, source), daemon=True
        )
        self._process.start()
        other.close()

    def __enter__(self) -> FormProcess:
        return self

    def __exit__(self, *_: Any) -> None:
        self._pipe.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def outputs(self) -> list[np.ndarray] | str:
        """What the form computes, or why it cannot."""
        return self._ask('outputs')

    def step(self) -> float:
        """Seconds of one call, after one that is not timed."""
        return self._ask('step')

    def peak(self) -> float:
        """Largest memory so far, in MB."""
        return self._ask('peak')

    def _ask(self, question: str) -> Any:
        try:
            self._pipe.send(question)
            return self._pipe.recv()
        except (EOFError, OSError) as error:
            self._process.join(10)
            code = self._process.exitcode
            if question == 'outputs':
                return f'its process ended with status {code}'
            raise RuntimeError(f'benchmark: a process ended with status {code}') from error


def _serve(pipe: Connection, form: str, task: Task, folder: Path, source: Path | None) -> None:
    """The life of a form's process: build, then answer questions until the pipe is closed."""
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        image = np.load(folder / 'image.npy')
        try:
            call, peak = caller(form, task, folder, source, image)
            outputs: list[np.ndarray] | str = call()
        except Exception as error:  # compilers and runtimes fail in any way
            outputs = first_line(error)
        while True:
            question = pipe.recv()
            if question == 'outputs':
                pipe.send(outputs)
            elif question == 'peak':
                pipe.send(peak())
            else:
                call()
                start = time.perf_counter()
                call()
                pipe.send(time.perf_counter() - start)


def first_line(error: Exception) -> str:
    """Kind and first line of an error."""
    return f'{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}'
