"""The language of kernels with a check in front of every load and store.

A pointer is here a pointer with the memory that it may reach: first byte, end, and whose memory it is.
`Kernel.at` moves the pointer alone, so an access beyond an operand is found even where it meets another
one. An access that fails is made to memory that is never read, and the first one is reported.
"""

from __future__ import annotations

import array
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from llvmlite import ir

from mmlk.ops.jit import checks, engine, language
from mmlk.ops.jit.language import Int, Kernel

_I64, _POINTER = ir.IntType(64), ir.PointerType()
_RANGED = ir.LiteralStructType([_POINTER, _I64, _I64, _I64])
"""Pointer, address of the first byte that it may reach, address behind the last one, and the owner:
number of an argument, or below zero of a variable or scratch."""

_REPORT = ('accesses', 'place', 'address', 'begin', 'end', 'owner')
"""What a call reports: accesses that failed, and of the first one its number among the kernel's."""

_PACKAGE = Path(__file__).parents[3]
_LANGUAGE = (__file__, language.__file__)


class _Access(NamedTuple):
    """An access as it is written in a kernel."""

    verb: str
    size: int
    place: str


class CheckedKernel(Kernel):
    """`Kernel` whose code stays within its operands and its scratch.

    Each argument is three words: its value, and the memory that it may reach if it is an address.
    """

    pointer_type = _RANGED

    def __init__(self, name: str, names: list[str], lanes: int):
        self.names, self.accesses, self.owners = names, [], ['a variable']
        super().__init__(name, names, lanes)
        word = self.b.inttoptr(self._word(engine.HEADER), _POINTER)
        self._report = self._ranged(word, self.int(0), 0)

    def compile(self) -> Checked:
        return Checked(super().compile(), self)

    # Pointers --------------------------------------------------------------------------------------

    def _argument(self, index) -> Int:
        return Int(self, self._word(self.int(index) * 3 + (engine.HEADER + 1)))

    def _address_argument(self, index):
        values = [self._word(self.int(index) * 3 + (engine.HEADER + 1 + each)) for each in range(3)]
        values[0] = self.b.inttoptr(values[0], _POINTER)
        return self._joined(*values, self.int(index).value)

    def _joined(self, *values):
        result = ir.Constant(_RANGED, ir.Undefined)
        for index, each in enumerate(values):
            result = self.b.insert_value(result, each, index)
        return result

    def _ranged(self, pointer, size: Int, owner: int):
        """A pointer to the first of ``size`` bytes."""
        begin = Int(self, self.b.ptrtoint(pointer, _I64))
        return self._joined(pointer, begin.value, (begin + size).value, _I64(owner))

    def _with_range(self, pointer):
        """A pointer that may be that of a variable."""
        if pointer.type == _RANGED:
            return pointer
        return self._ranged(pointer, self.int(4 * self.width), -1)

    def _plain(self, pointer):
        return self.b.extract_value(pointer, 0) if pointer.type == _RANGED else pointer

    def at(self, pointer, offset, unit=None):
        pointer = self._with_range(pointer)
        return self.b.insert_value(pointer, super().at(self._plain(pointer), offset, unit), 0)

    def scratch(self, vectors):
        self.owners.append(f'scratch of {_place()}')
        owner = -len(self.owners)
        return self._ranged(super().scratch(vectors), self.int(vectors) * (4 * self.width), owner)

    def routine(self, arguments: str, write: Callable) -> Callable:
        def write_with_report(report, *values) -> None:
            outer, self._report = self._report, report
            write(*values)
            self._report = outer

        call = super().routine(f'report_p {arguments}', write_with_report)
        return lambda *values: call(self._report, *values)

    # Accesses --------------------------------------------------------------------------------------

    def _load(self, address, kind, align: int = 4):
        return super()._load(self._checked(address, kind, 'reads'), kind, align)

    def _store(self, value, address) -> None:
        super()._store(value, self._checked(address, value.type, 'writes'))

    def _checked(self, address, kind, verb: str):
        """The address as a plain pointer, or one to memory that is never read."""
        size = 4 * kind.count if isinstance(kind, ir.VectorType) else 8 if kind == _I64 else 4
        self.accesses.append(_Access(verb, size, _place()))
        report, place = self._plain(self._report), _I64(len(self.accesses) - 1)
        return self.b.call(self._check(), [report, self._with_range(address), _I64(size), place])

    def _check(self):
        """The function that compares; its result may be accessed."""
        name = f'{self.name}_check'
        if name in self.module.globals:
            return self.module.globals[name]
        nowhere = ir.GlobalVariable(self.module, ir.ArrayType(_I64, 8), f'{self.name}_nowhere')
        nowhere.linkage, nowhere.initializer = 'internal', ir.Constant(nowhere.value_type, None)
        function = ir.Function(
            self.module, ir.FunctionType(_POINTER, [_POINTER, _RANGED, _I64, _I64]), name
        )
        function.linkage = 'internal'
        function.attributes.add('noinline')
        report, pointer, size, place = function.args
        b = ir.IRBuilder(function.append_basic_block())
        begin, end, owner = (b.extract_value(pointer, index) for index in (1, 2, 3))
        first = b.ptrtoint(b.extract_value(pointer, 0), _I64)
        last = b.add(first, size)
        fits = b.and_(b.icmp_unsigned('>=', first, begin), b.icmp_unsigned('<=', last, end))
        fits = b.and_(fits, b.icmp_unsigned('<', first, last))
        with b.if_then(fits):
            b.ret(b.extract_value(pointer, 0))
        before = b.atomic_rmw('add', report, _I64(1), 'monotonic')
        with b.if_then(b.icmp_unsigned('==', before, _I64(0))):
            for index, each in enumerate((place, first, begin, end, owner), 1):
                b.store(each, b.gep(report, [_I64(index)], source_etype=_I64))
        b.ret(b.bitcast(nowhere, _POINTER))
        return function


class Checked(engine.Compiled):
    """A kernel in machine code that checks its accesses, called as any other."""

    def __init__(self, compiled: engine.Compiled, kernel: CheckedKernel):
        self._run = compiled._run
        self.name, self._names = kernel.name, kernel.names
        self._accesses, self._owners = kernel.accesses, kernel.owners

    def __call__(self, tasks: int, cost: int, *arguments: int) -> None:
        """As `engine.Compiled`.

        Raises:
            RuntimeError: If an access was beyond the memory of its operand or scratch, or an address
                does not come from `mmlk.ops.jit.address`.
        """
        report, words = array.array('q', [0] * len(_REPORT)), []
        for index, each in enumerate(arguments):
            is_address = index >= len(self._names) or self._names[index].endswith('_p')
            if is_address and each and not isinstance(each, checks.Range):
                raise RuntimeError(
                    f'{self.name}: the address of {self._owner(index)} does not come from '
                    'mmlk.ops.jit.address, which knows the size of its memory'
                )
            words += each, *((each.begin, each.end) if isinstance(each, checks.Range) else (0, 0))
        super().__call__(tasks, cost, report.buffer_info()[0], *words)
        if report[0]:
            raise RuntimeError(self._message(dict(zip(_REPORT, report)), arguments))

    def _owner(self, number: int) -> str:
        if number < 0:
            return self._owners[-1 - number]
        if number < len(self._names):
            return f'operand {self._names[number].removesuffix("_p")!r}'
        return f'further operand {number - len(self._names)}'

    def _message(self, report: dict[str, int], arguments: tuple[int, ...]) -> str:
        access = self._accesses[report['place']]
        numbers = ', '.join(
            f'{name}={each}'
            for name, each in zip(self._names, arguments)
            if not name.endswith('_p')
        )
        return (
            f'{self.name} {access.verb} {access.size} bytes at byte '
            f'{report["address"] - report["begin"]} of {self._owner(report["owner"])}, which has '
            f'{report["end"] - report["begin"]}: {access.place}. The access was not made, nor were '
            f'{report["accesses"] - 1} others; called with {numbers}'
        )


def _place() -> str:
    """Where a kernel calls the language: the innermost line, and those that led to it."""
    frame, lines = inspect.currentframe(), []
    while frame is not None:
        code = frame.f_code
        if code.co_filename == language.__file__ and code.co_name == 'compiled':
            break
        path = Path(code.co_filename)
        if path.is_relative_to(_PACKAGE) and code.co_filename not in _LANGUAGE:
            lines.append(f'{path.relative_to(_PACKAGE)}:{frame.f_lineno} in {code.co_name}')
        frame = frame.f_back
    return ', called from '.join(lines)
