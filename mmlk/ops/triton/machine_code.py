"""Compiles launches for a GPU that need not be there, and reads what the machine code says.

Needs Triton with its bundled ``ptxas`` and ``cuobjdump``, no driver. Used by the tests and by
``tools/bench/inspect_kernels.py``.
"""

from __future__ import annotations

import importlib
import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import triton

from mmlk.ops.triton import MODULES, compat, runtime

_INSTRUCTION = re.compile(
    r'\s+/\*([0-9a-f]{4,6})\*/\s+(?:@!?U?P\w+\s+)?([A-Z0-9_]+)([A-Z0-9_.]*)(.*?);'
)


class Report(NamedTuple):
    """What the compiled code of one launch needs and does.

    Args:
        registers: Per thread.
        stack: Bytes of stack per thread; anything above 0 is spilled registers.
        shared: Bytes of shared memory per program.
        instructions: Count of each instruction by name.
        hot_loop: The same for the loop with most arithmetic, or for everything without a loop.
    """

    registers: int
    stack: int
    shared: int
    instructions: Counter
    hot_loop: Counter

    def share(self, name: str) -> float:
        """Share of instruction ``name`` in the hot loop."""
        return self.hot_loop[name] / max(1, self.hot_loop.total())

    @property
    def tensor_core_instructions(self) -> int:
        return sum(self.instructions[name] for name in ('HMMA', 'HGMMA', 'IMMA'))


def examples() -> dict[str, runtime.Example]:
    """The examples of all kernel modules by ``module/name``."""
    found = {}
    for name in MODULES:
        module = importlib.import_module(f'mmlk.ops.{name}')
        found.update({f'{name}/{each.name}': each for each in module.EXAMPLES})
    return found


def launch_of(example: runtime.Example) -> runtime.Launch:
    """The launch that ``example`` stands for.

    Raises:
        ValueError: if its call does not launch the kernel it names.
    """
    with runtime.recording() as launches:
        example.call()
    found = [each for each in launches if each.kernel.__name__ == example.kernel]
    if found:
        return found[example.position]
    raise ValueError(
        f'launch_of: {example.name} launches '
        f'{[each.kernel.__name__ for each in launches]}, not {example.kernel!r}'
    )


def inspect(launch: runtime.Launch, arch: int) -> Report:
    """Compile ``launch`` for ``sm_<arch>``, specialised as it would be at run time, and read it."""
    compiled = compat.compile_for(launch.kernel, arch, launch.args, launch.options)
    return _read(compiled.asm['cubin'], compiled.metadata.shared)


def resources(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of stack of a thread of the kernel in ``cubin``."""
    usage = _dump(cubin, '--dump-resource-usage')
    registers, stack = map(int, re.search(r'REG:(\d+) STACK:(\d+)', usage).groups())
    return registers, stack


def _dump(cubin: bytes, what: str) -> str:
    tool = Path(triton.__file__).parent / 'backends/nvidia/bin/cuobjdump'
    with tempfile.NamedTemporaryFile(suffix='.cubin') as file:
        file.write(cubin)
        file.flush()
        return subprocess.run(
            [tool, what, file.name], capture_output=True, text=True, check=True
        ).stdout


def _read(cubin: bytes, shared: int) -> Report:
    lines = [
        (int(match[1], 16), match[2], match[4])
        for match in map(_INSTRUCTION.match, _dump(cubin, '-sass').splitlines())
        if match
    ]
    names = Counter(name for _, name, _ in lines)
    return Report(*resources(cubin), shared, names, _hot_loop(lines))


def _hot_loop(lines: list[tuple[int, str, str]]) -> Counter:
    """Instructions of the innermost-first loop that does most arithmetic, found by backward jumps."""
    index = {address: position for position, (address, _, _) in enumerate(lines)}
    loops = []
    for position, (address, name, operands) in enumerate(lines):
        jump = re.search(r'0x([0-9a-f]+)', operands) if name == 'BRA' else None
        if jump and int(jump[1], 16) < address and int(jump[1], 16) in index:
            loops.append(
                Counter(each for _, each, _ in lines[index[int(jump[1], 16)] : position + 1])
            )
    if not loops:
        return Counter(name for _, name, _ in lines)
    # An outer loop holds the inner one: of equal work the shorter body is the hot one.
    return max(
        loops,
        key=lambda each: (
            each['FFMA'] + each['FFMA2'] + each['HMMA'] + each['HGMMA'],
            -each.total(),
        ),
    )
