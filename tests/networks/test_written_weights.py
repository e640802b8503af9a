"""Weights of a network in use are written in every way: no copy of the old ones is used."""

import pytest
import torch

from mmlk.ops.packed_weights import fingerprint
from tests.cases import TOLERANCE, assert_close
from tests.networks.families import FAMILIES, build, images


def through_data(parameter):
    parameter.data.copy_(parameter.data * 1.5)


def one_element(parameter):
    parameter.data.view(-1)[-1] += 1


def reversed_order(parameter):
    parameter.data.copy_(parameter.data.flip(0))


def through_numpy(parameter):
    parameter.detach().numpy()[...] *= 1.5


WRITES = [through_data, one_element, reversed_order, through_numpy]


@pytest.mark.parametrize('folded', [False, True], ids=['eval', 'folded'])
@pytest.mark.parametrize('family', FAMILIES)
@pytest.mark.parametrize('write', WRITES)
def test_written_weights_are_used(family, folded, write, monkeypatch):
    model, x = build(family, folded).eval(), images(family)
    with torch.no_grad():
        before = model(x)
        for parameter in model.parameters():
            write(parameter)
        got = model(x)
        monkeypatch.setenv('MMLK_BACKEND', 'reference')
        want = model.train().eval()(x)
    assert any(not torch.equal(a, b) for a, b in zip(before, got))
    for index, (mine, theirs) in enumerate(zip(got, want, strict=True)):
        assert_close(f'stage {index}', mine, theirs, 100 * TOLERANCE[torch.float32][0])


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64, torch.bfloat16, torch.int8])
@pytest.mark.parametrize('shape', [(7,), (5, 3), (8, 4), (1,)])
def test_a_fingerprint_tells_every_single_element(shape, dtype):
    tensor = torch.randint(1, 50, shape).to(dtype)
    before = fingerprint(tensor)
    for index in range(tensor.numel()):
        changed = tensor.clone()
        changed.view(-1)[index] += 1
        assert fingerprint(changed) != before
    assert fingerprint(tensor) == fingerprint(tensor.clone()) == before
    assert fingerprint(tensor[:0]) == ()
    strided = torch.zeros(*shape, 3, dtype=dtype)[..., 1].copy_(tensor)
    assert fingerprint(strided)[0] == before[0]
