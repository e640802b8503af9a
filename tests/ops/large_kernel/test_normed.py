"""SLaK's branches and norms as one training function, against the separate modules in float64."""

import copy

import pytest
import torch
from torch import nn

from mmlk.ops import LargeKernelDWConv2d
from mmlk.ops.large_kernel import normed as normed_branches
from tests.cases import GRADCHECK, TOLERANCE, assert_close
from tests.ops.helpers import LAYOUTS, leaf, outputs_and_gradients


@pytest.fixture(params=['compiled', 'torch'], autouse=True)
def loops(request, monkeypatch):
    """With compiled loops where they can be had, and as without them."""
    monkeypatch.setenv('MMLK_JIT', str(int(request.param == 'compiled')))


def module_of(channels, kernel_size, small, **norm):
    module = LargeKernelDWConv2d(
        channels, kernel_size, small, norm=lambda width: nn.BatchNorm2d(width, **norm)
    )
    for branch in module.children():
        nn.init.uniform_(branch.bn.weight, 0.5, 1.5)
        nn.init.normal_(branch.bn.bias)
    return module


def norms_of(module):
    return [branch.bn for branch in module.children()]


def refusal(module, x):
    return normed_branches.refusal(
        x, [branch.conv.weight for branch in module.children()], norms_of(module)
    )


def separate(monkeypatch):
    monkeypatch.setattr(normed_branches, 'refusal', lambda *args: 'not in this test')


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize(
    ('shape', 'kernel_size', 'small'),
    [((2, 6, 13, 9), 13, 5), ((1, 7, 5, 6), 9, 3), ((3, 4, 1, 2), 5, 5), ((2, 3, 24, 20), 31, 5)],
)
def test_outputs_gradients_and_statistics(shape, kernel_size, small, layout, monkeypatch):
    module = module_of(shape[1], kernel_size, small)
    wanted = copy.deepcopy(module).double()
    x = leaf(LAYOUTS[layout](shape) + 2)
    x64 = x.detach().double().requires_grad_()
    cotangent = torch.randn(shape)
    assert refusal(module, x) is None
    got = outputs_and_gradients(lambda *_: module(x), [x, *module.parameters()], cotangent)
    separate(monkeypatch)
    want = outputs_and_gradients(lambda *_: wanted(x64), [x64, *wanted.parameters()], cotangent)
    for index, (a, b) in enumerate(zip(got, want, strict=True)):
        assert_close(f'tensor {index}', a, b, 2 * TOLERANCE[torch.float32][1])
    for (name, a), b in zip(module.named_buffers(), wanted.buffers(), strict=True):
        assert_close(name, a, b, TOLERANCE[torch.float32][0])


def test_gradcheck():
    module = module_of(2, 5, 3).double()
    tensors = [leaf(torch.randn(2, 2, 4, 3, dtype=torch.float64)), *module.parameters()]
    assert torch.autograd.gradcheck(lambda x, *_: module(x), tensors, **GRADCHECK)


@pytest.mark.parametrize('momentum', [0.3, None, 0.0])
def test_running_statistics_follow_the_momentum(momentum, monkeypatch):
    module = module_of(4, 7, 3, momentum=momentum)
    wanted = copy.deepcopy(module)
    batches = torch.randn(3, 2, 4, 6, 5)
    for x in batches:
        module(x)
    separate(monkeypatch)
    for x in batches:
        wanted(x)
    for (name, a), b in zip(module.named_buffers(), wanted.buffers(), strict=True):
        assert_close(name, a, b, TOLERANCE[torch.float32][0])


def test_a_channel_without_variance():
    module = module_of(2, 5, 3)
    x = leaf(torch.zeros(1, 2, 6, 6))
    y = module(x)
    y.sum().backward()
    assert torch.isfinite(y).all() and torch.isfinite(x.grad).all()
    bias = sum(norm.bias for norm in norms_of(module))
    assert_close('bias', y, bias.view(1, 2, 1, 1).expand_as(y), TOLERANCE[torch.float32][0])


@pytest.mark.parametrize('index', range(5))
def test_what_wants_no_gradient_gets_none(index):
    module = module_of(3, 5, 3)
    parameters = list(module.parameters())
    parameters[index].requires_grad_(False)
    module(torch.randn(2, 3, 6, 6)).sum().backward()
    assert [each.grad is None for each in parameters] == [
        position == index for position in range(len(parameters))
    ]


def test_where_the_separate_modules_are_used():
    module, x = module_of(3, 5, 3), torch.randn(2, 3, 6, 6)
    assert 'not plain batch norms' in refusal(copy.deepcopy(module).eval(), x)
    with torch.autocast('cpu', torch.bfloat16):
        assert 'autocast' in refusal(module, x)
    assert 'one value per channel' in refusal(module, x[:1, :, :1, :1])
    module.LoRA2.bn.register_forward_hook(lambda *args: None)
    assert 'hooks' in refusal(module, x)


def test_compiled_training_equals_eager():
    module = module_of(3, 5, 3)
    wanted, x = copy.deepcopy(module), torch.randn(2, 3, 8, 7)
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True)(x)
    assert_close('compiled', compiled, wanted(x), TOLERANCE[torch.float32][1])


def test_second_derivatives_are_refused():
    x = leaf(torch.randn(2, 3, 8, 7))
    (first,) = torch.autograd.grad(module_of(3, 5, 3)(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match='LargeKernelDWConv2d: second derivatives are not'):
        first.sum().backward()
