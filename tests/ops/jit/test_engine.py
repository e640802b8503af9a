"""The compiler behind the loops: when it is there, its threads, and the words of its kernels."""

import functools
import inspect
import os
import subprocess
import sys
import threading

import pytest
import torch

from mmlk.ops import compat, jit
from mmlk.ops.jit import engine
from mmlk.ops.jit.address import address
from mmlk.ops.jit.language import LANES, kernel

needs_compiler = pytest.mark.skipif(
    jit.refusal() is not None, reason=f'no compiled loops: {jit.refusal()}'
)


@kernel('x_p y_p count numbers_p')
def _scale(k, x, y, count, numbers, *, factor):
    """One task: 16 floats times a factor; and integers for the test of their arithmetic."""
    first = k.task * LANES
    buffer = k.variable(k.zero)
    value = k.load_some(x, first, count - first, buffer)
    k.store_some(k.b.fmul(value, k.splat(factor)), y, first, count - first, buffer)
    with k.when(k.both(k.task < 1, count >= 1)):
        results = (
            7 + count,
            7 - count,
            count * 3,
            count // 4,
            count % 4,
            k.min(count, 5),
            k.max(count, 5),
            (0 - count).at_least_zero(),
            (0 - 3 * count).exactly_divided(3),
        )
        for place, each in enumerate(results):
            k.store_some(k.number(each), numbers, place, k.int(1), buffer)


def run(count=50, factor=2.5):
    x, y = torch.randn(count), torch.full((count + LANES,), torch.nan)
    numbers = torch.zeros(9 + LANES)
    _scale(factor=factor)(
        -(-count // LANES), 10**9, address(x), address(y), count, address(numbers)
    )
    return x, y, numbers[:9]


@needs_compiler
@pytest.mark.parametrize('count', [1, 3, 4, 15, 16, 17, 50])
def test_parts_of_vectors_and_integers(count):
    x, y, numbers = run(count)
    assert torch.equal(y[:count], x * 2.5)
    assert y[count:].isnan().all()
    assert numbers.tolist() == [
        7 + count,
        7 - count,
        3 * count,
        count // 4,
        count % 4,
        min(count, 5),
        max(count, 5),
        0,
        -count,
    ]


@kernel('x_p y_p count')
def _turn(k, x, y, count):
    """Vectors in reverse order, by way of two scratches of which each may exceed the stack's share."""
    first, second = k.scratch(count), k.scratch(count)
    with k.loop(0, count) as index:
        k.store(k.load(x, index * LANES), first, index * LANES)
    with k.loop(0, count) as index:
        k.store(k.load(first, index * LANES), second, (count - 1 - index) * LANES)
    with k.loop(0, count) as index:
        k.store(k.load(second, index * LANES), y, index * LANES)


@needs_compiler
@pytest.mark.parametrize('count', [1, 300, 600, 100_000])
def test_scratch_lies_on_the_stack_or_the_heap(count):
    x = torch.randn(count, LANES)
    y = torch.zeros_like(x)
    _turn()(1, 1, address(x), address(y), count)
    assert torch.equal(y, x.flip(0))


@needs_compiler
def test_every_set_of_parameters_is_compiled_once():
    assert _scale(factor=2.0) is _scale(factor=2.0)
    assert _scale(factor=2.0) is not _scale(factor=3.0)


def test_two_first_calls_at_once_compute_once():
    """The second waits; both get the first's result."""
    made, entered, may_end = [], threading.Event(), threading.Event()

    @engine.once
    def make():
        entered.set()
        may_end.wait(10)
        made.append(object())
        return made[-1]

    found = []
    threads = [threading.Thread(target=lambda: found.append(make())) for _ in range(8)]
    for each in threads:
        each.start()
    entered.wait(10)
    may_end.set()
    for each in threads:
        each.join()
    assert len(made) == 1
    assert found == made * 8


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='this system has no fork')
def test_a_process_forked_while_another_thread_compiles_can_compile():
    held, forked = threading.Event(), threading.Event()

    def hold():
        with engine._lock:
            held.set()
            forked.wait(0.2)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    child = os.fork()
    if child == 0:
        os._exit(0 if engine._lock.acquire(timeout=5) else 1)
    forked.set()
    thread.join()
    assert os.waitpid(child, 0)[1] == 0


@needs_compiler
def test_threads_of_python_serve_where_torch_has_none_to_lend(monkeypatch):
    def missing(name):
        raise OSError(f'{name}: no such file')

    monkeypatch.setattr(compat.ctypes, 'CDLL', missing)
    monkeypatch.setattr(engine, '_team', functools.cache(inspect.unwrap(engine._team)))
    monkeypatch.setattr(engine.torch, 'get_num_threads', lambda: 3)
    x, y, _ = run(4000)
    assert torch.equal(y[:4000], x * 2.5)


def test_the_environment_switches_it_off(monkeypatch):
    monkeypatch.setenv('MMLK_JIT', '0')
    assert jit.refusal() == 'MMLK_JIT=0'


def test_the_operators_work_without_llvmlite():
    program = """
import sys
sys.modules['llvmlite'] = None
import torch
from mmlk.ops import depthwise_conv2d, depthwise_conv2d_reference, explain, jit
x = torch.randn(1, 8, 9, 9).contiguous(memory_format=torch.channels_last)
weight = torch.randn(8, 1, 7, 7)
assert torch.allclose(depthwise_conv2d(x, weight), depthwise_conv2d_reference(x, weight), atol=1e-4)
print(jit.refusal())
print(explain(depthwise_conv2d, x, weight))
"""
    run = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("llvmlite is not installed (pip install 'mmlk[cpu]')") == 2
