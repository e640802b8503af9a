"""The construction of DCLS kernels in Triton's interpreter, kernel and gradients against float64."""

import pytest
import torch

from mmlk.ops.dcls import cuda as dcls_cuda
from tests.ops.triton.interpreter import check_dcls, check_dcls_not_finite

VERSIONS = ('v0', 'v1', 'max', 'gauss')
# id -> (O, I), elements, window
CASES = {
    'published': ((1, 1), 34, (17, 17)),
    'unequal-sides': ((2, 2), 5, (5, 9)),
    'even-window': ((3, 1), 4, (4, 6)),
    'large-window': ((1, 1), 3, (3, 61)),
}


@pytest.mark.parametrize('version', VERSIONS)
@pytest.mark.parametrize('case', CASES)
def test_kernel_and_gradients_equal_the_definition(interpreted, case, version):
    interpreted(check_dcls, version, *CASES[case], torch.float32)


@pytest.mark.parametrize('version', VERSIONS)
def test_half_parameters_are_constructed_in_float32(interpreted, version):
    interpreted(check_dcls, version, (2, 1), 5, (7, 7), torch.bfloat16)


@pytest.mark.parametrize('version', VERSIONS)
def test_positions_that_are_not_finite_show(interpreted, version):
    interpreted(check_dcls_not_finite, version)


@pytest.mark.parametrize(
    ('window', 'dtype', 'reason'),
    [
        ((5, 5, 5), torch.float32, '3 axes'),
        ((65, 5), torch.float32, 'a side above 64'),
        ((5, 5), torch.float64, 'torch.float64'),
    ],
)
def test_what_is_not_built_is_refused_with_its_reason(window, dtype, reason):
    weight, positions = torch.empty(2, 1, 3, dtype=dtype), torch.empty(2, 2, 1, 3, dtype=dtype)
    assert reason in dcls_cuda.refusal_of_window(weight, positions, None, window)
