"""Counters of operations agree on every network, whichever code computes it.

torch's counter looks at the operators that are called, MMEngine's (as fvcore's, whose logic it has) at
a trace. Both are compared with the layers one by one on the meta device, on which the figures of
configs/metafiles are counted (tests/configs/test_complexity.py).
"""

import pytest
import torch
from mmengine.analysis import FlopAnalyzer, get_model_complexity_info
from torch.utils.flop_counter import FlopCounterMode

from tests.networks.families import FAMILIES, LAYOUTS, build, images

PRODUCTS = ('conv', 'linear', 'matmul', 'addmm', 'bmm', 'einsum')
OTHERS = {'batch_norm', 'layer_norm', 'upsample_bilinear2d', 'upsample_nearest2d'}
families = pytest.mark.parametrize('family', FAMILIES)
folded = pytest.mark.parametrize('folded', [False, True], ids=['eval', 'folded'])


def flops(call):
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def stated(family, folded, monkeypatch):
    """Multiply-adds of the plain composition, where shapes flow alone."""
    with monkeypatch.context() as patch, torch.no_grad():
        patch.setenv('MMLK_BACKEND', 'reference')
        model = build(family, folded).eval().to('meta')
        return flops(lambda: model(images(family)[:1].to('meta'))) // 2


@families
@folded
@pytest.mark.parametrize('layout', LAYOUTS)
def test_counter_of_torch(family, folded, layout, monkeypatch):
    model, x = build(family, folded).eval(), images(family, layout)[:1]
    with torch.no_grad():
        found = flops(lambda: model(x)) // 2
    assert found == stated(family, folded, monkeypatch)


@families
@folded
def test_counter_of_mmengine(family, folded, monkeypatch):
    model, x = build(family, folded).eval(), images(family)[:1]
    counter = FlopAnalyzer(model, x).unsupported_ops_warnings(False)
    found = counter.uncalled_modules_warnings(False).by_operator()
    products = sum(found.pop(each, 0) for each in PRODUCTS)
    assert products == stated(family, folded, monkeypatch)
    assert set(found) <= OTHERS  # MMEngine adds these; papers and metafiles do not
    if folded:
        return
    info = get_model_complexity_info(
        model, input_shape=None, inputs=x, show_table=False, show_arch=False
    )
    assert info['flops'] == products + sum(found.values())
    assert info['params'] == sum(each.numel() for each in model.parameters())
