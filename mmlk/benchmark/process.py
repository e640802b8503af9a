"""One form in a process of its own."""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Timed(NamedTuple):
    """What a process can be asked for.

    Args:
        outputs: Computes what is compared with other forms.
        step: What is timed.
        peak: Tells the largest memory in MB.
        warms: Whether each timed step follows one that is not timed.
    """

    outputs: Callable[[], list[np.ndarray]]
    step: Callable[[], object]
    peak: Callable[[], float]
    warms: bool = True


class FormProcess:
    """One form in a process of its own, which computes when it is asked to.

    Args:
        make: Builds the form for an image (N, C, H, W), float32; can be pickled.
        image: ``.npy`` file of the image.
        clock: Tells seconds in that process; can be pickled.
    """

    def __init__(
        self,
        make: Callable[[np.ndarray], Timed],
        image: Path,
        clock: Callable[[], float] = time.perf_counter,
    ):
        context = multiprocessing.get_context('spawn')
        self._pipe, other = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(other, make, image, clock), daemon=True
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
        """Seconds of one step."""
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


def _serve(
    pipe: Connection,
    make: Callable[[np.ndarray], Timed],
    image: Path,
    clock: Callable[[], float],
) -> None:
    """The life of a form's process: build, then answer questions until the pipe is closed."""
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        pixels = np.load(image)
        try:
            form = make(pixels)
            outputs: list[np.ndarray] | str = form.outputs()
        except Exception as error:  # compilers and runtimes fail in any way
            outputs = first_line(error)
        while True:
            question = pipe.recv()
            if question == 'outputs':
                pipe.send(outputs)
            elif question == 'peak':
                pipe.send(form.peak())
            else:
                if form.warms:
                    form.step()
                start = clock()
                form.step()
                pipe.send(clock() - start)


def first_line(error: Exception) -> str:
    """Kind and first line of an error."""
    return f'{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}'
