"""For people who look into compiled loops: what LLVM got and made of it, and names for ``perf``.

``MMLK_JIT_DUMP=FOLDER`` writes the optimised LLVM code (``.ll``) and the assembly (``.s``) of every
loop that is compiled; the kept machine code is not used then. ``MMLK_JIT_PERF=1`` writes the
addresses of all loops to ``/tmp/perf-PID.map``, where ``perf report`` looks for names of functions.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

DUMP = 'MMLK_JIT_DUMP'
PERF = 'MMLK_JIT_PERF'


def dump_folder() -> Path | None:
    """Where compiled loops are to be written, or None.

    Raises:
        RuntimeError: If the folder cannot be made.
    """
    named = os.environ.get(DUMP)
    if not named:
        return None
    folder = Path(named).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RuntimeError(f'{DUMP}={named}: the folder cannot be made: {error}') from error
    return folder


def write(folder: Path, name: str, module: Any, machine: Any) -> None:
    """Write what LLVM made of a kernel.

    Args:
        folder: Existing folder.
        name: Of the files, without ending.
        module: LLVM module after optimisation.
        machine: LLVM's target machine.
    """
    (folder / f'{name}.ll').write_text(str(module))
    (folder / f'{name}.s').write_text(machine.emit_assembly(module))


def name_for_perf(name: str, address: int, size: int) -> None:
    """Tell ``perf`` the name of a function, if ``MMLK_JIT_PERF=1``.

    Args:
        name: Of the function.
        address: Its first byte.
        size: Bytes, at least as many as it has.
    """
    if os.environ.get(PERF) != '1':
        return
    # The folder is fixed: perf looks nowhere else.
    path = Path('/tmp' if os.name == 'posix' else tempfile.gettempdir()) / f'perf-{os.getpid()}.map'
    with open(path, 'a') as file:
        file.write(f'{address:x} {size:x} {name}\n')
