"""Machine code from kernels, and its launch on the threads that torch uses.

A compiled kernel is one C function of a block of 64-bit words: a task counter, the number of tasks, a
counter of threads, and the kernel's arguments. Every thread that runs it takes the next task until none
is left. Tasks write to places of their own, so the result does not depend on who takes which.
"""

from __future__ import annotations

import array
import ctypes
import functools
import hashlib
import os
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from mmlk.ops import compat
from mmlk.ops.jit import cache, inspection, recording

try:
    import llvmlite
    import llvmlite.binding as llvm
except ImportError:  # an optional dependency
    llvm = None

_Function = TypeVar('_Function', bound=Callable)

ENVIRONMENT = 'MMLK_JIT'

HEADER = 3
"""Words before a kernel's arguments."""

# Held by whoever asks LLVM anything, writes a kernel, compiles, or loads code: little of it is safe in
# two threads. Also held while a process forks, so that a child never begins with another's lock.
_lock = threading.RLock()
if hasattr(os, 'register_at_fork'):
    os.register_at_fork(
        before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release
    )
_loaded: dict[str, Compiled] = {}


def once(function: _Function) -> _Function:
    """`functools.cache` that computes under the lock, and one result for all threads.

    The cache alone lets two threads compute at once and drops one of the results, which may be in use.
    What is known already is found without the lock.
    """
    known = functools.cache(function)

    @functools.cache
    @functools.wraps(function)
    def first(*args, **options):
        with _lock:
            return known(*args, **options)

    return first


@once
def _machine():
    """LLVM's target machine for this processor and the engine that holds compiled code."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3
    )
    return machine, llvm.create_mcjit_compiler(llvm.parse_assembly(''), machine)


@once
def _missing() -> str | None:
    if llvm is None:
        return "llvmlite is not installed (pip install 'mmlk[cpu]')"
    if not hasattr(llvm, 'create_pass_builder'):
        return 'llvmlite is older than 0.45'
    if sys.platform == 'win32':
        return (
            'large stack frames need a run-time symbol that Windows does not offer to compiled code'
        )
    try:
        _machine()
    except RuntimeError as error:
        return f'LLVM does not know this processor ({error})'
    return None


@compat.assume_constant
def refusal() -> str | None:
    """Reason why nothing can be compiled here, or None. ``MMLK_JIT=0`` in the environment is one."""
    if compat.environment(ENVIRONMENT) == '0':
        return f'{ENVIRONMENT}=0'
    return _missing()


@once
def has(feature: str) -> bool:
    """Whether the processor has what LLVM calls ``feature``, for instance ``avx512f``."""
    return bool(llvm.get_host_cpu_features().get(feature))


openmp = once(compat.openmp_parallel)


@once
def _team():
    """``run(address, words, threads)``: several threads enter the function at once.

    They are threads of torch's own OpenMP runtime, which are running already; those of a second pool
    would run at the same time on the same cores. Where torch has another runtime, Python's threads do
    it.
    """
    enter = openmp()
    if enter is None:
        pool = ThreadPoolExecutor(thread_name_prefix='mmlk')

        def run(function, words, threads):
            for each in [pool.submit(function, words) for _ in range(threads)]:
                each.result()

        return run

    def run(function, words, threads):
        enter(function, words, threads, 0)

    return run


class Compiled:
    """A kernel in machine code. Call it with the number of tasks, their cost and its arguments."""

    WORTH_A_THREAD = 400_000
    """Multiplications for each further thread of a call: some ten microseconds of work, while waking a
    thread takes a few. To measure it again, time one loop on small maps with one thread
    and with two."""

    def __init__(self, address: int, named: Sequence[str] = ()):
        """
        Args:
            address: Of the machine code.
            named: Names of the arguments; those that end in ``_p`` are addresses, and so are all
                arguments behind them.
        """
        self.address = address
        self._run = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address)
        self._pointers = [index for index, each in enumerate(named) if each.endswith('_p')]
        self._named = len(named)

    def threads(self, tasks: int, cost: int) -> int:
        """Threads that a call with these arguments runs on, at most."""
        return max(1, min(torch.get_num_threads(), tasks, 1 + cost // self.WORTH_A_THREAD))

    def __call__(self, tasks: int, cost: int, *arguments: int) -> None:
        """Run all tasks.

        Args:
            tasks: Their number.
            cost: Multiplications, or what takes as long, of all tasks together.
            arguments: Addresses and sizes as the kernel numbers them.
        """
        words = array.array('q', (0, tasks, 0, *arguments))
        address, _ = words.buffer_info()
        threads = self.threads(tasks, cost)
        recorder = recording.recorder()
        if recorder is not None:
            pointers = (*self._pointers, *range(self._named, len(arguments)))
            recorder.launch(self.address, threads, tasks, arguments, pointers)
        if threads == 1:
            self._run(address)
        else:
            _team()(self._run, address, threads)


def compile_module(text: str, name: str, arguments: Sequence[str] = ()) -> Compiled:
    """Machine code of function ``name`` in an LLVM module, from `mmlk.ops.jit.cache` if it is there.

    Vectors are written out in the kernels, so LLVM's own vectorisers and its unroller stay off.

    Args:
        text: The module. The names of its functions begin with ``name``.
        name: Made unique by a digest of text, processor and compiler.
        arguments: Names of the arguments of a kernel.
    """
    with _lock:
        machine, engine = _machine()
        origin = repr(
            (
                text,
                llvm.get_host_cpu_name(),
                llvm.get_host_cpu_features().flatten(),
                llvm.llvm_version_info,
                llvmlite.__version__,
            )
        )
        unique = f'{name}_{hashlib.sha256(origin.encode()).hexdigest()[:40]}'
        if unique in _loaded:
            return _loaded[unique]
        dump = inspection.dump_folder()
        code = None if dump else cache.load(unique)
        if code is None:
            module = llvm.parse_assembly(text.replace(f'"{name}', f'"{unique}'))
            module.verify()
            options = llvm.create_pipeline_tuning_options(3)
            options.loop_vectorization = options.slp_vectorization = options.loop_unrolling = False
            builder = llvm.create_pass_builder(machine, options)
            builder.getModulePassManager().run(module, builder)
            code = machine.emit_object(module)
            cache.store(unique, code)
            if dump:
                inspection.write(dump, unique, module, machine)
        engine.add_object_file(llvm.ObjectFileRef.from_data(code))
        engine.finalize_object()
        address = engine.get_function_address(unique)
        inspection.name_for_perf(unique, address, len(code))
        _loaded[unique] = Compiled(address, arguments)
        return _loaded[unique]
