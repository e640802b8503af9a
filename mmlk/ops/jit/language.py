"""The words in which kernels are written: numbers, loops, vectors of 16 floats and strided maps.

A kernel is a Python function decorated with `kernel`. It is called once for each set of compile-time
parameters, with a `Kernel` to write to, and leaves behind the code of one task. Values are 64-bit
integers or vectors of the machine being written for; Python's own numbers, loops and conditions are
worked out while the code is written.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import struct
from collections.abc import Callable

from mmlk.ops.jit import checks, engine

try:
    from llvmlite import ir
except ImportError:
    ir = None

LANES = 16
"""Floats in a vector. LLVM splits it into registers: two on AVX2, one on AVX-512, four on NEON."""

STACK = 64 << 10
"""Bytes of a thread's stack that a task's scratch may take: a quarter of the smallest stacks in use,
256 KB, which tests/ops/test_memory_safety.py runs all operators on. More would save
calls of the heap."""

if ir is not None:
    _I32, _I64, _F32 = ir.IntType(32), ir.IntType(64), ir.FloatType()
    _POINTER, _QUARTER = ir.PointerType(), ir.VectorType(_F32, 4)


def kernel(arguments: str) -> Callable:
    """Decorator for ``write(k, *numbers, **parameters)``: the result compiles once per parameters.

    Args:
        arguments: Names of the run-time arguments, for the count of words; names that end in ``_p`` are
            addresses.

    The result also takes ``lanes``, the floats of this kernel's vectors, where they are not 16.
    """
    names = arguments.split()

    def decorate(write: Callable) -> Callable[..., engine.Compiled]:
        @engine.once
        def compiled(lanes: int = LANES, **parameters) -> engine.Compiled:
            reason = engine.refusal()
            if reason is not None:
                raise RuntimeError(f'{write.__name__}: nothing can be compiled, {reason}')
            # Such as depthwise_loops_forward: what `perf` shows must tell whose loop it is.
            place = '_'.join(write.__module__.split('.')[-2:])
            name = f'{place}_{write.__name__.strip("_")}'
            k = _kernel_class()(name, names, lanes)
            write(k, *k.arguments, **parameters)
            return k.compile()

        compiled.__doc__ = write.__doc__
        return compiled

    return decorate


def _kernel_class() -> type[Kernel]:
    if not checks.ENABLED:
        return Kernel
    from mmlk.ops.jit.checked import CheckedKernel  # it is made of what stands here

    return CheckedKernel


@functools.lru_cache(maxsize=4096)
def bits(number: float) -> int:
    """The argument that `Kernel.float_of_bits` takes for ``number``."""
    return struct.unpack('<I', struct.pack('<f', number))[0]


class Int:
    """A 64-bit integer of the kernel, with Python's operators."""

    def __init__(self, k: Kernel, value):
        self.k, self.value = k, value

    def _with(self, other, operation, swap=False):
        left, right = self.value, self.k.int(other).value
        if swap:
            left, right = right, left
        return Int(self.k, getattr(self.k.b, operation)(left, right))

    def __add__(self, other):
        return self._with(other, 'add')

    def __radd__(self, other):
        return self._with(other, 'add')

    def __sub__(self, other):
        return self._with(other, 'sub')

    def __rsub__(self, other):
        return self._with(other, 'sub', True)

    def __mul__(self, other):
        return self._with(other, 'mul')

    def __rmul__(self, other):
        return self._with(other, 'mul')

    def __floordiv__(self, other):
        return self._with(other, 'udiv')

    def __mod__(self, other):
        return self._with(other, 'urem')

    def at_least_zero(self):
        """The number, or zero where it is negative."""
        return self.k.max(self, 0)

    def exactly_divided(self, divisor: int):
        """Quotient of a multiple of ``divisor``, of either sign."""
        return self._with(divisor, 'sdiv')

    def compare(self, sign: str, other):
        """Truth value for `Kernel.when` of ``self sign other``."""
        return self.k.b.icmp_signed(sign, self.value, self.k.int(other).value)

    def __lt__(self, other):
        return self.compare('<', other)

    def __gt__(self, other):
        return self.compare('>', other)

    def __ge__(self, other):
        return self.compare('>=', other)


def _untyped(place):
    """An alloca as a pointer to anything, which LLVM's pointers are; llvmlite still types these."""
    place.type = _POINTER
    return place


class Kernel:
    """The code of one task, being written.

    Attributes:
        task: Number of the task, an `Int`.
        worker: Number of the thread that runs it, below `Compiled.threads`.
        arguments: The run-time arguments: `Int`, or a pointer where the name ends in ``_p``.
        width: Floats in a vector.

    All memory but that of `variable` is reached through `at`, `_load` and `_store`, which
    `mmlk.ops.jit.checked` overrides; what they take for a pointer is of ``pointer_type``.
    """

    pointer_type = None if ir is None else _POINTER

    def __init__(self, name: str, names: list[str], lanes: int = LANES):
        self.name, self.width = name, lanes
        self._vector, self._indices = ir.VectorType(_F32, lanes), ir.VectorType(_I32, lanes)
        self._serial = itertools.count()
        self.module = ir.Module(name)
        self.module.triple = engine.llvm.get_default_triple()
        self._function = ir.Function(
            self.module, ir.FunctionType(ir.VoidType(), [_POINTER, _I64, _I64]), f'{name}_task'
        )
        self._function.linkage = 'internal'
        self._words, task, worker = self._function.args
        self._names, self._named = names, len(names)
        self.b = ir.IRBuilder(self._function.append_basic_block())
        self.task, self.worker = Int(self, task), Int(self, worker)
        self.arguments = []
        for index, each in enumerate(names):
            self.arguments.append(
                self._address_argument(index) if each.endswith('_p') else self._argument(index)
            )
        self.zero = ir.Constant(self._vector, [0.0] * lanes)
        # One half of the stack is for scratch of a size known now, the other for what is not.
        self._known_left, self._left = STACK // 2, self.int(STACK // 2)
        self._owned = []

    # Integers --------------------------------------------------------------------------------------

    def int(self, value) -> Int:
        """``value`` as a number of the kernel."""
        return value if isinstance(value, Int) else Int(self, _I64(value))

    def min(self, left, right) -> Int:
        left, right = self.int(left), self.int(right)
        return Int(self, self.b.select(left < right, left.value, right.value))

    def max(self, left, right) -> Int:
        left, right = self.int(left), self.int(right)
        return Int(self, self.b.select(left < right, right.value, left.value))

    def choose(self, condition, left, right):
        """``left`` where the condition holds: two numbers or two addresses."""
        if isinstance(left, Int) or isinstance(right, Int):
            return Int(self, self.b.select(condition, self.int(left).value, self.int(right).value))
        return self.b.select(condition, left, right)

    def both(self, left, right):
        """Whether both conditions hold."""
        return self.b.and_(left, right)

    # Flow ------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def loop(self, first, end, step=1):
        """Code under ``with`` is repeated for first, first + step, ... below ``end``."""
        b, first, end, step = self.b, self.int(first), self.int(end), self.int(step)
        before = b.block
        head, body, after = (b.append_basic_block() for _ in range(3))
        b.branch(head)
        b.position_at_end(head)
        index = b.phi(_I64)
        index.add_incoming(first.value, before)
        b.cbranch(b.icmp_signed('<', index, end.value), body, after)
        b.position_at_end(body)
        yield Int(self, index)
        index.add_incoming(b.add(index, step.value, flags=['nsw']), b.block)
        b.branch(head)
        b.position_at_end(after)

    def when(self, condition):
        """Code under ``with`` runs where the condition holds."""
        return self.b.if_then(condition)

    def either(self, condition):
        """``with k.either(c) as (then, otherwise)``, then ``with then: ...``."""
        return self.b.if_else(condition)

    def routine(self, arguments: str, write: Callable) -> Callable:
        """Code that is written once and called wherever the result is called.

        Args:
            arguments: Names as for `kernel`, of addresses and numbers.
            write: Writes the code, given the arguments. It reads no value of the code around it.
        """
        types = [self.pointer_type if each.endswith('_p') else _I64 for each in arguments.split()]
        function = ir.Function(
            self.module, ir.FunctionType(ir.VoidType(), types), f'{self.name}_{next(self._serial)}'
        )
        function.linkage = 'internal'
        function.attributes.add('noinline')
        outer, self.b = self.b, ir.IRBuilder(function.append_basic_block())
        write(
            *(Int(self, each) if kind is _I64 else each for kind, each in zip(types, function.args))
        )
        self.b.ret_void()
        self.b = outer

        def call(*values) -> None:
            self.b.call(
                function,
                [
                    self.int(each).value if kind is _I64 else each
                    for kind, each in zip(types, values, strict=True)
                ],
            )

        return call

    # Vectors ---------------------------------------------------------------------------------------

    def variable(self, value):
        """A register that code may read (`read`) and overwrite (`write`), from ``value`` on."""
        with self.b.goto_entry_block():
            place = _untyped(self.b.alloca(self._vector))
        self.b.store(value, place)
        return place

    def read(self, variable):
        return self.b.load(variable, typ=self._vector)

    def write(self, variable, value) -> None:
        self.b.store(value, variable)

    def add_product(self, variable, left, right) -> None:
        """``variable += left * right`` in one rounding."""
        self.write(variable, self.fma(left, right, self.read(variable)))

    def splat(self, number: float):
        """The vector of one Python number."""
        return self.lanes([number] * self.width)

    def lanes(self, numbers: list[float]):
        """The vector of as many Python numbers as it has lanes."""
        return ir.Constant(self._vector, numbers)

    def compare(self, sign: str, left, right):
        """Truth values, lane by lane, for `both` and LLVM's ``select``."""
        return self.b.fcmp_ordered(sign, left, right)

    def fma(self, left, right, addend):
        return self.intrinsic('llvm.fma', left, right, addend)

    def intrinsic(self, name: str, *vectors):
        """LLVM's ``name`` on vectors."""
        full = f'{name}.v{self.width}f32'
        function = self.module.globals.get(full) or ir.Function(
            self.module, ir.FunctionType(self._vector, [self._vector] * len(vectors)), full
        )
        return self.b.call(function, vectors)

    def sum_of_lanes(self, vector):
        """The sum of a vector's floats, in all lanes."""
        for distance in (8, 4, 2, 1):
            vector = self.b.fadd(
                vector, self.shuffle(vector, vector, [lane ^ distance for lane in range(LANES)])
            )
        return vector

    def power_of_two(self, vector):
        """2 to the power of floats that are integers from -126 to 127."""
        bias, shift = (ir.Constant(self._indices, [each] * self.width) for each in (127, 23))
        bits = self.b.add(self.b.fptosi(vector, self._indices), bias)
        return self.b.bitcast(self.b.shl(bits, shift), self._vector)

    def number(self, value: Int):
        """The vector of an integer of the kernel."""
        return self._everywhere(self.b.sitofp(value.value, _F32))

    def float_of_bits(self, bits: Int):
        """The vector of a float32 that is passed as the integer with its bits."""
        return self._everywhere(self.b.bitcast(self.b.trunc(bits.value, _I32), _F32))

    def _everywhere(self, single):
        vector = self.b.insert_element(self.zero, single, _I32(0))
        return self.shuffle(vector, self.zero, [0] * self.width)

    # Memory ----------------------------------------------------------------------------------------

    def scratch(self, vectors):
        """Memory for that many vectors, the task's own: on the stack while `STACK` lasts, then the heap.

        Not for code inside loops, conditions or routines; LLVM refuses the kernel there.
        """
        b, bytes_each, count = self.b, 4 * self.width, self.int(vectors)
        if isinstance(vectors, int) and vectors * bytes_each <= self._known_left:
            self._known_left -= vectors * bytes_each
            return _untyped(b.alloca(self._vector, count.value))
        size, nothing = count * bytes_each, _POINTER(None)
        fits, place, owned = self._left >= size, [], []
        with b.if_else(fits) as (near, far):
            with near:
                place.append((_untyped(b.alloca(self._vector, count.value)), b.block))
                owned.append((nothing, b.block))
            with far:
                allocate = self._library('aligned_alloc', _POINTER, [_I64, _I64])
                place.append((b.call(allocate, [_I64(bytes_each), size.value]), b.block))
                owned.append(place[-1])
        self._owned.append(self._merged(owned))
        place = self._merged(place)
        self._left = self.choose(fits, self._left - size, self._left)
        return place

    def _merged(self, values: list):
        """The pointer of whichever block was passed through."""
        result = self.b.phi(_POINTER)
        for value, block in values:
            result.add_incoming(value, block)
        return result

    def _library(self, name: str, result, arguments: list):
        """A function of the C library."""
        known = self.module.globals.get(name)
        return known or ir.Function(self.module, ir.FunctionType(result, arguments), name)

    def _word(self, index):
        """The word with that number of those that the call passes."""
        place = self.b.gep(self._words, [self.int(index).value], source_etype=_I64)
        return self.b.load(place, typ=_I64)

    def _argument(self, index) -> Int:
        """The argument with that number."""
        return Int(self, self._word(self.int(index) + engine.HEADER))

    def _address_argument(self, index):
        """The argument with that number, an address."""
        return self.b.inttoptr(self._argument(index).value, _POINTER)

    def further(self, index):
        """The argument with that number behind those that have names, an address."""
        return self._address_argument(self.int(index) + self._named)

    def at(self, pointer, offset, unit=None):
        """The address ``offset`` floats on, or as many of LLVM's type ``unit``."""
        return self.b.gep(pointer, [self.int(offset).value], source_etype=unit or _F32)

    def _load(self, address, kind, align: int = 4):
        """What LLVM's type ``kind`` makes of the memory at an address."""
        return self.b.load(address, typ=kind, align=align)

    def _store(self, value, address) -> None:
        self.b.store(value, address, align=4)

    def _plain(self, pointer):
        """The pointer as LLVM's, for instructions that touch no memory."""
        return pointer

    def load_int(self, pointer, index) -> Int:
        """The 64-bit integer with that number."""
        return Int(self, self._load(self.at(pointer, index, _I64), _I64, 8))

    def load(self, pointer, offset=0):
        """A vector from ``offset`` on."""
        return self._load(self.at(pointer, offset), self._vector)

    def load_splat(self, pointer, offset=0):
        """The vector of one float in memory."""
        return self._everywhere(self._load(self.at(pointer, offset), _F32))

    def gather(self, addresses: list):
        """The vector of the floats at as many addresses."""
        vector = self.zero
        for lane, address in enumerate(addresses):
            vector = self.b.insert_element(vector, self._load(address, _F32), _I32(lane))
        return vector

    def load_four(self, pointer, offset=0):
        """Four floats, for `shuffle`."""
        return self._load(self.at(pointer, offset), _QUARTER)

    def shuffle(self, left, right, lanes):
        """The lanes with these numbers of two vectors of one length, those of ``right`` counting on."""
        lanes = [_I32(each) for each in lanes]
        return self.b.shuffle_vector(
            left, right, ir.Constant(ir.VectorType(_I32, len(lanes)), lanes)
        )

    def store(self, vector, pointer, offset=0) -> None:
        self._store(vector, self.at(pointer, offset))

    def load_some(self, pointer, offset, count: Int, buffer):
        """As `load`, where only ``count`` floats may be touched; the rest is zero.

        Args:
            buffer: Variable for vectors of which a part is read or written.
        """
        with self.either(count >= self.width) as (full, part):
            with full:
                self.write(buffer, self.load(pointer, offset))
            with part:
                self.write(buffer, self.zero)
                self.copy_some(self.at(pointer, offset), buffer, count)
        return self.read(buffer)

    def store_some(self, vector, pointer, offset, count: Int, buffer) -> None:
        """As `store`, of the first ``count`` floats."""
        with self.either(count >= self.width) as (full, part):
            with full:
                self.store(vector, pointer, offset)
            with part:
                self.write(buffer, vector)
                self.copy_some(buffer, self.at(pointer, offset), count)

    def prefetch(self, pointer, offset=0, *, write: bool = False) -> None:
        """Bring the line of the cache that holds that float closer; any address will do."""
        name = 'llvm.prefetch.p0'
        function = self.module.globals.get(name) or ir.Function(
            self.module, ir.FunctionType(ir.VoidType(), [_POINTER, _I32, _I32, _I32]), name
        )
        place = self._plain(self.at(pointer, offset))
        self.b.call(function, [place, _I32(int(write)), _I32(3), _I32(1)])

    def copy_block(self, source, target, count: Int) -> None:
        """Copy a vector of which only ``count`` floats may be read; the rest of the target is zero.

        Unlike `load_some` it does not wait for what it has written.
        """
        with self.either(count >= self.width) as (full, part):
            with full:
                self.store(self.load(source), target)
            with part:
                self.store(self.zero, target)
                self.copy_some(source, target, count)

    def copy_some(self, source, target, count: Int) -> None:
        """Copy ``count`` floats, four at a time as far as they go."""
        with self.loop(0, count - 3, 4) as lane:
            self._store(self._load(self.at(source, lane), _QUARTER), self.at(target, lane))
        with self.loop(count - count % 4, count) as lane:
            self.copy_float(self.at(source, lane), self.at(target, lane))

    def copy_float(self, source, target) -> None:
        """Copy one float from address to address."""
        self._store(self._load(source, _F32), target)

    def barrier(self, pointer) -> None:
        """Loads from there are made again after this: earlier ones occupy no registers."""
        nothing = ir.InlineAsm(ir.FunctionType(ir.VoidType(), [_POINTER]), '', 'r,~{memory}', True)
        self.b.call(nothing, [self._plain(pointer)])

    # End -------------------------------------------------------------------------------------------

    def compile(self) -> engine.Compiled:
        """Machine code of what has been written."""
        return engine.compile_module(self.finish(), self.name, self._names)

    def finish(self) -> str:
        """The module: the task, and a function that takes tasks from the counter until none is left."""
        for each in self._owned:
            self.b.call(self._library('free', ir.VoidType(), [_POINTER]), [each])
        self.b.ret_void()
        entry = ir.Function(self.module, ir.FunctionType(ir.VoidType(), [_POINTER]), self.name)
        (words,) = entry.args
        b = ir.IRBuilder(entry.append_basic_block())
        count = b.load(b.gep(words, [_I64(1)], source_etype=_I64), typ=_I64)
        worker = b.atomic_rmw(
            'add', b.gep(words, [_I64(2)], source_etype=_I64), _I64(1), 'monotonic'
        )
        head, body, end = (b.append_basic_block() for _ in range(3))
        b.branch(head)
        b.position_at_end(head)
        task = b.atomic_rmw('add', words, _I64(1), 'monotonic')
        b.cbranch(b.icmp_signed('<', task, count), body, end)
        b.position_at_end(body)
        b.call(self._function, [words, task, worker])
        b.branch(head)
        b.position_at_end(end)
        b.ret_void()
        return str(self.module)
