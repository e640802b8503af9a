"""Every kernel's arithmetic in Triton's interpreter, against float64."""

import pytest
import torch

from tests.ops.triton.interpreter import check_forward

CASES = {
    'k3': ((2, 6, 5, 9), (3, 3), 1),
    'k5-stride2': ((1, 8, 7, 6), (5, 5), 2),
}


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize('case', CASES)
def test_forward_equals_reference(interpreted, case, dtype):
    interpreted(check_forward, *CASES[case], 'channels_last', dtype)
