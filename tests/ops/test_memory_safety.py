"""Operands whose memory is not what it looks like: equal to the reference, or refused in words."""

import os
import subprocess
import sys

import pytest
import torch

from mmlk.ops import dispatch
from tests.ops.operators import CALLS, check, compute

OPERANDS = [(name, index) for name, call in CALLS.items() for index in range(len(call.shapes))]


@pytest.fixture(autouse=True, params=['compiled', 'torch'])
def _routes(request, monkeypatch):
    monkeypatch.setenv('MMLK_JIT', '1' if request.param == 'compiled' else '0')


def strided(x):
    """The same values in every second element of wider memory full of NaN."""
    wide = torch.full((*x.shape, 2), torch.nan, dtype=x.dtype)
    wide[..., 0] = x
    return wide[..., 0]


def expanded(x):
    """One value along the first axis that has several, read again and again; NaN lies around it."""
    axis = next((index for index, size in enumerate(x.shape) if size > 1), 0)
    one = x.narrow(axis, 0, 1)
    memory = torch.full((3 * one.numel(),), torch.nan, dtype=x.dtype)
    middle = memory[one.numel() : 2 * one.numel()].view(one.shape)
    return middle.copy_(one).expand(x.shape)


def shifted(x):
    """The same values and strides from an odd place of larger memory on."""
    memory = torch.full((x.numel() + 6,), torch.nan, dtype=x.dtype)
    return torch.as_strided(memory, x.shape, x.stride(), 3).copy_(x)


def negated(x):
    """The same values, kept negated as the imaginary part of a conjugate is."""
    return torch._neg_view(-x)


VIEWS = {each.__name__: each for each in (strided, expanded, shifted, negated)}


def test_every_operator_has_a_call():
    assert set(CALLS) == set(dispatch.operators())


@pytest.mark.parametrize('gradients', [False, True], ids=['inference', 'training'])
@pytest.mark.parametrize('view', VIEWS)
@pytest.mark.parametrize('name', CALLS)
def test_views_give_what_the_reference_gives(name, view, gradients):
    for index in range(len(CALLS[name].shapes)):
        tensors = CALLS[name].tensors()
        tensors[index] = VIEWS[view](tensors[index])
        check(name, tensors, gradients)


@pytest.mark.parametrize('name', CALLS)
def test_all_operands_may_be_views(name):
    for view in VIEWS.values():
        check(name, [view(each) for each in CALLS[name].tensors()], True)


@pytest.mark.parametrize('gradients', [False, True], ids=['inference', 'training'])
@pytest.mark.parametrize('name,index', OPERANDS)
def test_freed_storage_is_refused(name, index, gradients):
    tensors = CALLS[name].tensors()
    tensors[index].untyped_storage().resize_(0)
    with torch.set_grad_enabled(gradients), pytest.raises(RuntimeError, match='storage of an oper'):
        compute(name, [each.requires_grad_(gradients) for each in tensors])


@pytest.mark.parametrize('gradients', [False, True], ids=['inference', 'training'])
@pytest.mark.parametrize('name,index', OPERANDS)
def test_operands_on_meta_never_reach_compiled_code(name, index, gradients):
    tensors = CALLS[name].tensors()
    tensors[index] = tensors[index].to('meta')
    with torch.set_grad_enabled(gradients):
        try:
            results = compute(name, tensors)
        except (RuntimeError, ValueError, NotImplementedError):
            return  # torch says that the devices differ
    assert any(each.is_meta for each in results)


# Registered operators by name: their arguments from the tensors of the call.
BY_NAME = {
    'depthwise_conv2d': lambda op, x, w, b: op(x, w, b, [1, 1]),
    'inception_dwconv2d': lambda op, *a: op(*a),
    'large_kernel_branches': lambda op, *a: op(*a),
    'large_kernel_sum': lambda op, *a: op(*a),
    'recconv2d': lambda op, x, down, *weights: op(x, down, list(weights), 'bilinear'),
}


@pytest.mark.parametrize('name', BY_NAME)
def test_registered_operators_called_by_name_guard_their_memory(name):
    operator = getattr(torch.ops.mmlk, name)
    for index in range(len(CALLS[name].shapes)):
        tensors = CALLS[name].tensors()
        tensors[index].untyped_storage().resize_(0)
        with pytest.raises(RuntimeError, match='storage of an operand'):
            BY_NAME[name](operator, *tensors)
        # With an operand on meta PyTorch calls the rule of shapes alone, or says that devices differ.
        tensors = CALLS[name].tensors()
        tensors[index] = tensors[index].to('meta')
        try:
            result = BY_NAME[name](operator, *tensors)
        except (RuntimeError, NotImplementedError):
            continue
        first = result if isinstance(result, torch.Tensor) else result[0]
        assert first.is_meta


SMALL_STACK = """
import sys, threading
import torch
from mmlk.ops import InceptionDWConv2d
from tests.ops.operators import CALLS, calls, outcome

torch.set_num_threads(1)
failed = []


def work():
    try:
        for name in CALLS:
            for c, h, w in ((24, 60, 70), (24, 3, 1024)):
                call = calls(1, c, h, w)[name]
                CALLS[name] = call
                outcome(name, call.tensors(), True)
                outcome(name, call.tensors(), False)
        for band, width in ((31, 4096), (101, 2048), (11, 32768)):
            x = torch.randn(1, 64, 64, width).contiguous(memory_format=torch.channels_last)
            InceptionDWConv2d(64, 3, band)(x.requires_grad_()).sum().backward()
    except BaseException as error:
        failed.append(error)
        raise


threading.stack_size(256 * 1024)
thread = threading.Thread(target=work)
thread.start()
thread.join()
sys.exit(len(failed))
"""


@pytest.mark.slow
def test_a_thread_with_a_small_stack_computes_everything():
    run = subprocess.run(
        [sys.executable, '-c', SMALL_STACK], capture_output=True, text=True, env=dict(os.environ)
    )
    assert run.returncode == 0, f'{run.returncode}: {run.stderr[-2000:]}'
