"""The direct depthwise kernels in Triton's interpreter, output and gradients against float64."""

import pytest
import torch

from tests.ops.triton.interpreter import (
    check_depthwise,
    check_depthwise_on_demand,
    check_depthwise_rearranged,
    check_depthwise_without_images,
)

# id -> (N, C, H, W), kernel, stride. Odd sizes, several images per block of rows, tall kernels (axes
# exchanged), sides longer than one block of taps, kernels beyond the map, phases without any tap.
CASES = {
    'k3': ((2, 6, 5, 9), (3, 3), 1),
    'k5-stride2': ((1, 3, 7, 6), (5, 5), 2),
    'k1-stride2': ((2, 3, 4, 5), (1, 1), 2),
    'k3x5-stride2x1': ((1, 2, 8, 5), (3, 5), (2, 1)),
    'k5x1': ((1, 3, 6, 7), (5, 1), 1),
    'k1x11-row': ((2, 3, 1, 12), (1, 11), 1),
    'k5x15': ((1, 2, 3, 9), (5, 15), 1),
    'k15x3-stride2': ((1, 2, 9, 4), (15, 3), 2),
    'k11-clipped': ((1, 3, 2, 3), (11, 11), 1),
    'pixel': ((3, 2, 1, 1), (3, 3), 1),
    'k3-seventeen-channels': ((1, 17, 3, 8), (3, 3), 1),
}


@pytest.mark.parametrize('layout', ['contiguous', 'channels_last'])
@pytest.mark.parametrize('case', CASES)
def test_depthwise_equals_reference(interpreted, case, layout):
    interpreted(check_depthwise, *CASES[case], layout, torch.float32)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize('layout', ['contiguous', 'channels_last'])
@pytest.mark.parametrize('case', ['k3', 'k5-stride2'])
def test_depthwise_takes_half_maps_with_float_weights(interpreted, case, layout, dtype):
    interpreted(check_depthwise, *CASES[case], layout, dtype)


def test_depthwise_takes_half_weights(interpreted):
    interpreted(check_depthwise, *CASES['k3'], 'channels_last', torch.float16, torch.float16)


@pytest.mark.parametrize('case', ['k3x5-stride2x1', 'k5x1'])
def test_depthwise_with_rearranged_weights(interpreted, case):
    interpreted(check_depthwise_rearranged, *CASES[case], 'channels_last', torch.float32)


@pytest.mark.parametrize(
    'layout', ['channel_slice', 'channels_last_slice', 'expanded', 'transposed']
)
def test_depthwise_takes_maps_of_any_strides(interpreted, layout):
    interpreted(check_depthwise, (1, 3, 5, 6), (3, 3), 1, layout, torch.float32)


@pytest.mark.parametrize('mask', [(1, 0, 0), (0, 1, 0), (0, 0, 1)], ids=str)
def test_gradients_on_demand(interpreted, mask):
    interpreted(check_depthwise_on_demand, [bool(each) for each in mask])


def test_batch_of_none(interpreted):
    interpreted(check_depthwise_without_images)
