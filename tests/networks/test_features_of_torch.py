"""What PyTorch offers to do with modules in use: it has the effect that it has on torch's own layers."""

import copy
import threading

import pytest
import torch

from tests.cases import TOLERANCE, assert_close
from tests.networks.families import FAMILIES, build, images

BOUND = 100 * TOLERANCE[torch.float32][0]
pytestmark = pytest.mark.parametrize('family', FAMILIES)
folded = pytest.mark.parametrize('folded', [False, True], ids=['eval', 'folded'])


def assert_same(got, want, bound=BOUND):
    for index, (mine, theirs) in enumerate(zip(got, want, strict=True)):
        assert_close(f'stage {index}', mine, theirs, bound)


@torch.no_grad()
def reference(model, x, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv('MMLK_BACKEND', 'reference')
        return copy.deepcopy(model)(x)


def assign(model):
    state = {key: value.clone() for key, value in model.state_dict().items()}
    for value in state.values():
        value.mul_(1.1) if value.is_floating_point() else value
    model.load_state_dict(state, assign=True)


def empty(model):
    state = copy.deepcopy(model.state_dict())
    model.to('meta').to_empty(device='cpu').load_state_dict(state)


def share(model):
    model.share_memory()
    for parameter in model.parameters():
        parameter.mul_(1.1)


def swap(model):
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        model.double().float()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


@folded
@pytest.mark.parametrize('change', [assign, empty, share, swap])
@torch.no_grad()
def test_conversions_of_a_network_in_use(family, folded, change, monkeypatch):
    model, x = build(family, folded).eval(), images(family, 'channels_last')
    model(x)
    change(model)
    assert_same(model(x), reference(model, x, monkeypatch))


@folded
@torch.no_grad()
def test_views_as_images(family, folded, monkeypatch):
    model, x = build(family, folded).eval(), images(family)
    pairs = torch.complex(x, x.flip(2))
    views = (
        torch.cat((x, x), 1)[:, 1:4],
        torch.view_as_real(pairs)[..., 1],
        pairs.conj().imag,
        x[:1].expand(2, -1, -1, -1),
        x.transpose(2, 3),
    )
    for view in views:
        assert_same(model(view), reference(model, view.clone(), monkeypatch))


@pytest.mark.parametrize('layout', ['contiguous', 'channels_last'])
def test_results_may_be_written_in_place(family, layout):
    """As by a neck that begins with an activation in place."""
    model, x = build(family), images(family, layout)
    found = []
    for write in (torch.Tensor.mul_, torch.Tensor.mul):
        model.zero_grad()
        y = write(model(x)[-1], 2)
        y.square().mean().backward()
        found.append([y, *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    assert_same(found[0][:1], found[1][:1])
    largest = max(each.abs().max().item() for each in found[1][1:])
    for mine, theirs in zip(found[0][1:], found[1][1:], strict=True):
        assert (mine - theirs).abs().max() <= 1e-4 * largest


@pytest.mark.parametrize('layout', ['contiguous', 'channels_last'])
def test_two_passes_before_one_gradient(family, layout):
    """As two views of an image in one loss: gradients are the sums of those of either."""
    model, first = build(family, drop_path_rate=0.0), images(family, layout)
    second, found = 0.5 * first.flip(0), []
    for together in (True, False):
        model.zero_grad()
        losses = []
        for x in (first, second):
            losses.append(sum(y.square().mean() for y in model(x)))
            if not together:
                losses.pop().backward()
        if together:
            sum(losses).backward()
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    largest = max(each.abs().max().item() for each in found[1])
    for mine, theirs in zip(*found, strict=True):
        assert (mine - theirs).abs().max() <= 1e-5 * largest


@folded
@torch.no_grad()
def test_threads_of_a_server(family, folded):
    model, x = build(family, folded).eval(), images(family, 'channels_last')
    want, failures = model(x), []

    def serve(index):
        count = 1 + index % 2
        try:
            with torch.inference_mode() if index % 3 else torch.no_grad():
                assert_same(model(x[:count]), [each[:count] for each in want])
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=serve, args=(index,)) for index in range(6)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not failures, failures


@folded
@torch.no_grad()
def test_a_default_of_double_precision(family, folded, monkeypatch):
    torch.set_default_dtype(torch.float64)
    try:
        model, x = build(family, folded).eval(), images(family, 'channels_last').double()
        assert_same(model(x), reference(model, x, monkeypatch), 1e-9)
        model, x = model.float(), x.float()
        assert_same(model(x), reference(model, x, monkeypatch))
    finally:
        torch.set_default_dtype(torch.float32)


def test_deterministic_algorithms(family):
    model, x = build(family, drop_path_rate=0.0), images(family, 'channels_last')
    torch.use_deterministic_algorithms(True)
    try:
        found = []
        for _ in range(2):
            model.zero_grad()
            sum(y.square().mean() for y in model(x)).backward()
            found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
