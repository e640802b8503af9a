"""Weights of a network in use are written in every way: no copy of the old ones is used."""

import pytest
import torch

from mmlk.ops.packed_weights import Snapshot
from tests.cases import TOLERANCE, assert_close
from tests.networks.families import FAMILIES, build, images


def through_data(parameter):
    parameter.data.copy_(parameter.data * 1.5)


def one_element(parameter):
    """As an optimizer or a person writes: autograd counts it."""
    parameter.view(-1)[-1] += 1


def some_elements(parameter):
    """As a pruning tool writes: two per cent, not counted."""
    parameter.data.view(-1)[::50] *= 1.5


def reversed_order(parameter):
    parameter.data.copy_(parameter.data.flip(0))


def through_numpy(parameter):
    parameter.detach().numpy()[...] *= 1.5


WRITES = [through_data, one_element, some_elements, reversed_order, through_numpy]


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
@pytest.mark.parametrize('shape', [(7,), (5, 3), (8, 4), (1,), (16, 16)])
def test_a_snapshot_of_few_elements_tells_every_single_one(shape, dtype):
    tensor = torch.randint(1, 50, shape).to(dtype)
    snapshot = Snapshot(tensor)
    elements = tensor.data.view(-1)
    for index in range(tensor.numel()):
        elements[index] += 1
        assert not snapshot.holds(tensor)
        elements[index] -= 1
        assert snapshot.holds(tensor)
    assert not snapshot.holds(tensor.clone())


def test_a_snapshot_of_many_elements_tells_writes_of_some_per_cent():
    weight = torch.nn.Parameter(torch.randn(1024, 768))
    snapshot = Snapshot(weight)
    for write in (
        lambda data: data[500:520].zero_(),
        lambda data: data[:, 96:112].zero_(),
        lambda data: data.add_(torch.randn(1024, 1) @ torch.randn(1, 768) * 1e-3),
        lambda data: data.mul_(torch.rand(1024, 768) > 0.02),
        lambda data: data.copy_(data.flip(1)),
    ):
        write(weight.data)
        assert not snapshot.holds(weight)
        snapshot = Snapshot(weight)
        assert snapshot.holds(weight)
    weight.data = weight.data.clone()
    assert not snapshot.holds(weight)


def test_a_snapshot_reads_the_memory_of_the_tensor_alone():
    """Strided, expanded and empty tensors too; elements in gaps may be read, none outside."""
    whole = torch.randn(40, 30)
    for part in (whole[:, ::3], whole[5:7, 2:4].t(), whole[3:4].expand(9, 30), whole[:0]):
        snapshot = Snapshot(part)
        assert snapshot.holds(part)
        part.data.add_(1) if part.numel() and 0 not in part.stride() else None
        assert snapshot.holds(part) == (part.numel() == 0 or 0 in part.stride())
    freed = torch.randn(64, 64)
    snapshot = Snapshot(freed)
    freed.untyped_storage().resize_(0)
    assert not snapshot.holds(freed)
