"""SLaK's branches and norms as one training function, against the separate modules in float64."""

import copy

import pytest
import torch
from torch import nn

from mmlk.ops import LargeKernelDWConv2d, explain
from mmlk.ops.modules import own_batch
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
    """What `explain` says of the CPU code for a module in training."""
    weights = [branch.conv.weight for branch in module.children()]
    states = [own_batch(norm) for norm in norms_of(module)]
    return explain('large_kernel_normed', x, weights, states).splitlines()[0]


def separate(module):
    """The same parameters in modules that are called one by one: a hook wants to see them."""
    for norm in norms_of(module):
        norm.register_forward_hook(lambda *_: None)
    return module


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize(
    ('shape', 'kernel_size', 'small'),
    [((2, 6, 13, 9), 13, 5), ((1, 7, 5, 6), 9, 3), ((3, 4, 1, 2), 5, 5), ((2, 3, 24, 20), 31, 5)],
)
def test_outputs_gradients_and_statistics(shape, kernel_size, small, layout):
    module = module_of(shape[1], kernel_size, small)
    wanted = separate(copy.deepcopy(module).double())
    x = leaf(LAYOUTS[layout](shape) + 2)
    x64 = x.detach().double().requires_grad_()
    cotangent = torch.randn(shape)
    assert refusal(module, x) == 'cpu: used'
    got = outputs_and_gradients(lambda *_: module(x), [x, *module.parameters()], cotangent)
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
def test_running_statistics_follow_the_momentum(momentum):
    module = module_of(4, 7, 3, momentum=momentum)
    wanted = separate(copy.deepcopy(module))
    batches = torch.randn(3, 2, 4, 6, 5)
    for x in batches:
        module(x)
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
    module, x = module_of(3, 5, 3), torch.randn(2, 3, 6, 6).requires_grad_()
    node = 'large_kernel_normedBackward'
    assert type(module(x).grad_fn).__name__ == node
    with torch.autocast('cpu', torch.bfloat16):
        assert 'autocast' in refusal(module, x)
    assert 'one value per channel' in refusal(module, x[:1, :, :1, :1])
    assert type(copy.deepcopy(module).eval()(x).grad_fn).__name__ != node
    assert type(separate(copy.deepcopy(module))(x).grad_fn).__name__ != node


@pytest.mark.parametrize('name', ['LoRA1', 'LoRA1.conv', 'LoRA2.bn', 'small_conv.conv'])
@pytest.mark.parametrize('kind', ['forward hook', 'backward hook', 'own forward', 'other class'])
def test_every_module_is_called_where_somebody_expects_it(name, kind):
    module, x, calls = module_of(3, 5, 3), torch.randn(2, 3, 6, 6).requires_grad_(), []
    want = copy.deepcopy(module)(x).detach()
    target = module.get_submodule(name)
    if kind == 'forward hook':
        target.register_forward_hook(lambda *_: calls.append(1))
    elif kind == 'backward hook':
        target.register_full_backward_hook(lambda *_: calls.append(1))
    elif kind == 'own forward':
        plain = target.forward
        target.forward = lambda *args: (calls.append(1), plain(*args))[1]
    else:

        class Other(type(target)):
            def forward(self, *args):
                calls.append(1)
                return super().forward(*args)

        target.__class__ = Other
    y = module(x)
    y.sum().backward()
    assert calls == [1]
    assert_close('y', y, want, TOLERANCE[torch.float32][1])


def test_compiled_training_equals_eager():
    module = module_of(3, 5, 3)
    wanted, x = copy.deepcopy(module), torch.randn(2, 3, 8, 7)
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True)(x)
    assert_close('compiled', compiled, wanted(x), TOLERANCE[torch.float32][1])


def test_second_derivatives_are_refused():
    x = leaf(torch.randn(2, 3, 8, 7))
    (first,) = torch.autograd.grad(module_of(3, 5, 3)(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match='large_kernel_normed: second derivatives are not'):
        first.sum().backward()
