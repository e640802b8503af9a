"""Inception depthwise convolution without some branches, against the whole one."""

import itertools

import pytest
import torch

from mmlk.layers import BRANCHES, PartialInceptionDWConv2d
from mmlk.networks.mixers import TOKEN_MIXERS
from mmlk.ops import InceptionDWConv2d
from tests.cases import TOLERANCE, assert_close

SUBSETS = [
    subset for size in range(len(BRANCHES)) for subset in itertools.combinations(BRANCHES, size)
]


@pytest.mark.parametrize('branches', SUBSETS)
def test_a_branch_that_is_left_out_is_one_with_a_unit_kernel(branches):
    """Weights of the same names, and in the whole operator a single 1 in the kernels left out."""
    options = dict(band_kernel_size=5, branch_ratio=0.25)
    partial = TOKEN_MIXERS['InceptionDWConv2d'](9, branches=branches, **options)
    assert isinstance(partial, PartialInceptionDWConv2d)
    whole = InceptionDWConv2d(9, **options)
    whole.load_state_dict(partial.state_dict(), strict=False)
    assert partial.state_dict().keys() <= whole.state_dict().keys()
    with torch.no_grad():
        for branch in set(BRANCHES) - set(branches):
            conv = getattr(whole, BRANCHES[branch])
            conv.bias.zero_()
            conv.weight.zero_()[:, :, conv.kernel_size[0] // 2, conv.kernel_size[1] // 2] = 1
    x = torch.randn(2, 9, 7, 8, generator=torch.Generator().manual_seed(0))
    assert_close('output', partial(x), whole(x), TOLERANCE[torch.float32][0])


def test_the_whole_operator_is_taken_where_no_branch_is_left_out():
    assert type(TOKEN_MIXERS['InceptionDWConv2d'](8)) is InceptionDWConv2d


def test_an_unknown_branch_is_refused():
    with pytest.raises(ValueError, match=r"branches \('diagonal',\) must be of square, horizontal"):
        TOKEN_MIXERS['InceptionDWConv2d'](8, branches=('diagonal',))
