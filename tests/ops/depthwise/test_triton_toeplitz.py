"""Tensor-core kernels: arithmetic in the interpreter, machine code, and what new sizes compile."""

import functools

import pytest
import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import make_backend
from triton.runtime.jit import create_function_from_signature

from mmlk.ops.depthwise import triton as depthwise
from mmlk.ops.depthwise import triton_toeplitz as toeplitz
from mmlk.ops.triton import machine_code, runtime
from tests.ops.depthwise.triton_large_kernels import (
    check_depthwise,
    check_large_kernel,
    check_parts_of_the_weight_gradient,
)

# Shape and kernel: rows read in place in vectors of 8 and of 4, copied rows; maps smaller than the
# kernel; blocks that do not fill a tile; more than one tile; tall, wide and square kernels.
CASES = {
    'k17-rows-of-8': ((2, 2, 9, 24), (17, 17)),
    'k13-rows-of-4': ((3, 1, 7, 12), (13, 13)),
    'k11x9-odd-rows': ((2, 3, 10, 13), (11, 9)),
    'k51x5': ((1, 2, 30, 16), (51, 5)),
    'k5x51': ((1, 2, 6, 56), (5, 51)),
    'k31-clipped': ((2, 1, 5, 7), (31, 31)),
    'k9-pixel': ((2, 2, 1, 1), (9, 9)),
    'k11-many-images': ((70, 1, 8, 8), (11, 11)),
}


@pytest.mark.parametrize('case', CASES)
def test_passes_equal_the_reference_in_fp32(interpreted, case):
    interpreted(check_depthwise, *CASES[case], 'contiguous', torch.float32)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize('case', ['k13-rows-of-4', 'k11x9-odd-rows'])
def test_passes_equal_the_reference_in_16_bits(interpreted, case, dtype):
    interpreted(check_depthwise, *CASES[case], 'contiguous', dtype)


@pytest.mark.parametrize(
    'layout', ['channels_last', 'channel_slice', 'channels_last_slice', 'expanded', 'transposed']
)
def test_maps_of_any_strides(interpreted, layout):
    interpreted(check_depthwise, *CASES['k13-rows-of-4'], layout, torch.float32)


@pytest.mark.parametrize('parts', [1, 2, 5])
def test_weight_gradient_in_parts(interpreted, parts):
    interpreted(check_parts_of_the_weight_gradient, parts)


BRANCHES = {
    'three': ((1, 1, 9, 12), ((13, 5), (5, 13), (5, 5))),
    'two-odd-rows': ((1, 2, 6, 11), ((11, 5), (5, 11))),
    'square-and-small-clipped': ((2, 1, 4, 8), ((13, 13), (5, 5))),
}


@pytest.mark.parametrize('layout', ['contiguous', 'channels_last'])
@pytest.mark.parametrize('case', BRANCHES)
def test_branches_share_launches(interpreted, case, layout):
    interpreted(check_large_kernel, *BRANCHES[case], layout, torch.bfloat16)


@pytest.mark.parametrize('arch', [80, 90])
@pytest.mark.parametrize(
    'name',
    [
        'depthwise.triton_toeplitz/forward-k17-bf16',
        'depthwise.triton_toeplitz/forward-k51x5-bf16',
        'depthwise.triton_toeplitz/weight-gradient-k17-bf16',
        'large_kernel.triton/branches-bf16',
        'large_kernel.triton/weight-gradients-bf16',
    ],
)
def test_operands_arrive_in_vectors_without_registers(name, arch):
    report = machine_code.inspect(machine_code.launch_of(machine_code.examples()[name]), arch)
    assert report.hot_loop['LDG'] == 0, 'scalar or synchronous loads'
    assert report.hot_loop['LDGSTS'] > 0
    assert report.hot_loop['HGMMA' if arch >= 90 else 'HMMA'] > 0


def compiled_variants(call):
    """What Triton would compile for the launches of ``call``: kernel, types, constants."""
    backend = make_backend(GPUTarget('cuda', 90, 32))
    with runtime.recording() as launches:
        call()
    keys = set()
    for each in launches:
        bind = create_function_from_signature(each.kernel.signature, each.kernel.params, backend)
        _, specialisation, options = bind(*each.args, **each.options)
        keys.add((each.kernel.__name__, str(specialisation), str(options)))
    return keys


def test_new_image_sizes_compile_little():
    def passes(height, width):
        x = runtime.meta(2, 96, height, width)
        weight = runtime.meta(96, 1, 17, 17, dtype=torch.float32)
        toeplitz.forward(x, weight, None, (1, 1))
        toeplitz.backward(x, x, weight, (1, 1), [False, True, False])

    variants = set()
    for step in range(24):
        variants |= compiled_variants(functools.partial(passes, 100 + 8 * step, 292 - 8 * step))
    # Sizes of groups by powers of two, and whether strides are multiples of 16, are compiled in.
    assert len(variants) <= 12


def problem(kernel, dtype=torch.bfloat16, stride=(1, 1), last=False, width=56):
    return depthwise.Problem((2, 8, 56, width), kernel, stride, dtype, last)


@pytest.mark.parametrize(
    'arguments,taken',
    [
        (dict(kernel=(17, 17)), True),
        (dict(kernel=(51, 5)), True),
        (dict(kernel=(7, 7)), False),
        (dict(kernel=(17, 17), stride=(2, 2)), False),
        (dict(kernel=(11, 11), last=True), False),
        (dict(kernel=(13, 13), last=True), True),
        (dict(kernel=(11, 11), width=57), False),
        (dict(kernel=(11, 11)), True),
        (dict(kernel=(17, 17), dtype=torch.float32), False),
    ],
)
def test_route_takes_what_pays(arguments, taken):
    assert toeplitz.takes(problem(**arguments)) == taken


def test_fp32_is_multiplied_as_tf32_only_where_torch_allows_it():
    torch.backends.cudnn.allow_tf32 = True  # reset by the fixture of the suite
    assert toeplitz.takes(problem((17, 17), torch.float32))


@pytest.mark.parametrize('columns,kw', [(8, 5), (16, 17), (8, 51), (64, 51), (16, 1), (8, 127)])
def test_windows_cover_the_block_and_its_neighbourhood(columns, kw):
    width, margin = toeplitz.window(columns, kw)
    assert width % 8 == margin % 4 == 0
    assert margin >= kw // 2
    assert width - margin >= columns + kw // 2
