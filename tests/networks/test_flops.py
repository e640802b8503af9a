"""Counters of operations agree on every network, whichever code computes it.

torch's counter looks at the operators that are called, MMEngine's and fvcore's at a trace, thop's at the
classes of modules. All are compared with the layers one by one on the meta device, on which the figures
of configs/metafiles are counted (tests/configs/test_complexity.py).
"""

import logging

import pytest
import thop
import torch
from fvcore.nn import FlopCountAnalysis
from mmengine.analysis import FlopAnalyzer, get_model_complexity_info
from thop.vision.basic_hooks import count_convNd, count_linear, zero_ops
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from mmlk.ops import DCLSDepthwiseConv2d
from tests.networks.families import FAMILIES, LAYOUTS, build, images

PRODUCTS = ('conv', 'linear', 'matmul', 'addmm', 'bmm', 'einsum')
OTHERS = {'batch_norm', 'layer_norm', 'upsample_bilinear2d', 'upsample_nearest2d'}
families = pytest.mark.parametrize('family', FAMILIES)
folded = pytest.mark.parametrize('folded', [False, True], ids=['eval', 'folded'])


def flops(call):
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def stated(family, folded, monkeypatch, kind=''):
    """Multiply-adds of the plain composition, where shapes flow alone; of operators named ``kind``."""
    with monkeypatch.context() as patch, torch.no_grad():
        patch.setenv('MMLK_BACKEND', 'reference')
        model = build(family, folded).eval().to('meta')
        with FlopCounterMode(display=False) as counter:
            model(images(family)[:1].to('meta'))
    counts = counter.get_flop_counts()['Global']
    return sum(count for operator, count in counts.items() if kind in str(operator)) // 2


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


@families
@folded
def test_counter_of_fvcore(family, folded, monkeypatch, caplog):
    """It says what it leaves out: sums and activations, which papers do not count either."""
    model, x = build(family, folded).eval(), images(family)[:1]
    with caplog.at_level(logging.ERROR):
        found = FlopCountAnalysis(model, x).uncalled_modules_warnings(False).by_operator()
    products = sum(found.pop(each, 0) for each in PRODUCTS)
    assert products == stated(family, folded, monkeypatch)
    assert set(found) <= OTHERS


def rules(model):
    """What docs/safety.md tells thop: the classes of this package count as the layers that they are."""
    kinds = {nn.Conv2d: count_convNd, nn.Linear: count_linear}
    kinds.update({nn.BatchNorm2d: zero_ops, nn.LayerNorm: zero_ops})
    return {
        type(each): rule
        for each in model.modules()
        for kind, rule in kinds.items()
        if isinstance(each, kind)
    }


@families
@folded
def test_counter_of_thop(family, folded, monkeypatch):
    """It misses what no layer computes: the products of attention, and convolutions of a block that
    makes its kernel anew in each call."""
    model, x = build(family, folded).eval(), images(family)[:1]
    missed = []
    handles = []
    for each in model.modules():
        if isinstance(each, DCLSDepthwiseConv2d):
            taps = each.kernel_size[0] * each.kernel_size[1]
            handles.append(
                each.register_forward_hook(lambda *a, k=taps: missed.append(k * a[-1].numel()))
            )
    with torch.no_grad():
        model(x)
    for each in handles:
        each.remove()
    if family.startswith('recnext_'):  # elsewhere these are linear layers
        missed.append(stated(family, folded, monkeypatch, 'bmm'))
    ours, _ = thop.profile(model, (x,), rules(model), verbose=False)
    plain, _ = thop.profile(model, (x,), verbose=False)
    whole = stated(family, folded, monkeypatch)
    assert plain < whole
    assert ours == whole - sum(missed)
