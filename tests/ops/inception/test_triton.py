"""The fused Inception kernels in Triton's interpreter, output and gradients against float64."""

import pytest
import torch

from tests.ops.triton.interpreter import check_inception, check_inception_on_demand

# id -> (N, C, H, W), branch channels, square side, band length
CASES = {
    'default': ((1, 10, 9, 8), 2, 3, 11),
    'no-identity': ((2, 6, 3, 10), 2, 3, 5),
    'seventeen-per-branch': ((1, 53, 3, 4), 17, 3, 3),
    'two-blocks-of-taps': ((1, 5, 4, 6), 1, 7, 15),
    'pixel': ((2, 8, 1, 1), 1, 3, 11),
}


@pytest.mark.parametrize('layout', ['contiguous', 'channels_last'])
@pytest.mark.parametrize('case', CASES)
def test_inception_equals_reference(interpreted, case, layout):
    interpreted(check_inception, *CASES[case], layout, torch.float32)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize('layout', ['contiguous', 'channels_last'])
def test_inception_takes_half_maps_with_float_weights(interpreted, layout, dtype):
    interpreted(check_inception, (1, 10, 5, 6), 2, 3, 5, layout, dtype)


@pytest.mark.parametrize(
    'layout', ['channel_slice', 'channels_last_slice', 'expanded', 'transposed']
)
def test_inception_takes_maps_of_any_strides(interpreted, layout):
    interpreted(check_inception, (1, 8, 5, 4), 2, 3, 5, layout, torch.float32)


@pytest.mark.parametrize('wanted', [[0], [1], [4, 6], [0, 2]], ids=str)
def test_gradients_on_demand(interpreted, wanted):
    interpreted(check_inception_on_demand, [index in wanted for index in range(7)])
