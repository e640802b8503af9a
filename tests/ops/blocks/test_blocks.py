"""Groups of layers that train, or infer, as one call on a CPU, against the layers in float64."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from mmlk.layers import (
    ConvNormMlp,
    DropPath,
    LinearAttention2d,
    RecAttn2d,
    add_conv_norm_mlp,
    channels_last_gradient,
    fold_conv_norms,
)
from mmlk.ops import RecConv2d, dispatch, jit, recconv2d
from tests.cases import TOLERANCE, assert_close
from tests.golden_weights import golden_input, load_golden_weights

BN = dict(type='BN')
OUTPUT, PARAMETER = TOLERANCE[torch.float32]


class Branch(nn.Module):
    """A block's second half: norm, mixer, residual."""

    def __init__(self, normed=True, rate=0.0):
        super().__init__()
        self.norm = nn.BatchNorm2d(8) if normed else nn.Identity()
        self.mixer = ConvNormMlp(8, 12, bias=False, norm_cfg=BN)
        self.drop_path = DropPath(rate)

    def forward(self, x):
        return add_conv_norm_mlp(x, x * 2, self.mixer, self.norm, self.drop_path)


MODULES = {
    'mixer': lambda: Branch(),
    'mixer-without-norm': lambda: Branch(normed=False),
    'attention': lambda: LinearAttention2d(
        8, 2, qk_channels=8, qk_groups=2, bias=False, norm_cfg=BN
    ),
    'attention-ungrouped': lambda: LinearAttention2d(
        8, 1, qk_channels=4, qk_groups=1, bias=False, norm_cfg=BN
    ),
    'recursive-attention': lambda: RecAttn2d(8, 2),
    'recursion': lambda: RecConv2d(8, level=2),
}
NODES = {
    'mixer': 'conv_norm_mlp',
    'mixer-without-norm': 'conv_norm_mlp',
    'recursion': 'recconv2d',
    'recursive-attention': 'depthwise_sum',
}


def last(x):
    return x.contiguous(memory_format=torch.channels_last)


def outcome(module, x, cotangent):
    x = last(x).requires_grad_()
    y = module(x)
    module.zero_grad()
    y.backward(cotangent.to(y.dtype))
    return {
        'output': y,
        'x': x.grad,
        **{key: p.grad for key, p in module.named_parameters()},
        **{key: value.clone() for key, value in module.named_buffers()},
    }


@pytest.mark.parametrize('size', [(2, 8, 5, 7), (1, 8, 16, 9), (3, 8, 2, 1)], ids=str)
@pytest.mark.parametrize('name', MODULES)
def test_training_equals_the_layers_in_float64(name, size):
    module = load_golden_weights(MODULES[name]()).train()
    double = copy.deepcopy(module).double()
    x, cotangent = golden_input(size), golden_input(size, seed=1)
    got, want = outcome(module, x, cotangent), outcome(double, x.double(), cotangent)
    # Behind two normalised values per channel every gradient is a difference of nearly equal numbers.
    slack = 1 if size[0] * size[2] * size[3] > 6 else 100
    for key, value in want.items():
        # The bias of a norm in front of another has no gradient but the rounding of its sum.
        scale = max(value.abs().max().item(), 0.2)
        assert (got[key].double() - value).abs().max() <= slack * PARAMETER * scale, key


@pytest.mark.parametrize('name', NODES)
def test_training_takes_one_node(name):
    module = MODULES[name]().train()
    y = module(last(golden_input((2, 8, 6, 6))).requires_grad_())
    assert type(y.grad_fn).__name__ == f'{NODES[name]}Backward'


@pytest.mark.parametrize(
    'change',
    [
        lambda m: m.mixer[0].register_forward_hook(lambda *_: None),
        lambda m: m.norm.eval(),
        lambda m: setattr(m.mixer[1], 'forward', torch.nn.functional.gelu),
        lambda m: m.double(),
        lambda m: setattr(m.drop_path, 'rate', 0.5),
    ],
    ids=['hook', 'frozen-statistics', 'own-forward', 'float64', 'drop-path'],
)
def test_layers_run_one_by_one_where_something_needs_them(change):
    module = Branch().train()
    change(module)
    x = last(golden_input((2, 8, 6, 6))).to(module.norm.weight.dtype).requires_grad_()
    assert 'conv_norm_mlp' not in type(module(x).grad_fn).__name__


def test_hook_on_a_convolution_is_called():
    module, seen = Branch().train(), []
    module.mixer[2].conv.register_forward_hook(lambda *_: seen.append(1))
    module(last(golden_input((2, 8, 6, 6))))
    assert seen == [1]


def test_single_value_per_channel_is_refused_as_by_the_norm():
    with pytest.raises(ValueError, match='more than 1 value per channel'):
        Branch().train()(last(golden_input((1, 8, 1, 1))))


@pytest.mark.parametrize('frozen', ['mixer.0.conv.weight', 'mixer.2.norm.bias', 'norm.weight'])
def test_frozen_parameters_get_no_gradient(frozen):
    module = Branch().train()
    module.get_parameter(frozen).requires_grad_(False)
    module(last(golden_input((2, 8, 6, 6))).requires_grad_()).square().sum().backward()
    without = [key for key, p in module.named_parameters() if p.grad is None]
    assert without == [frozen]


@pytest.mark.parametrize('name', MODULES)
def test_recomputation_gives_the_same_gradients(name):
    module = load_golden_weights(MODULES[name]()).train()
    x, cotangent = golden_input((2, 8, 6, 6)), golden_input((2, 8, 6, 6), seed=1)
    want = outcome(module, x, cotangent)
    module.zero_grad()
    again = last(x).requires_grad_()
    checkpoint(module, again, use_reentrant=False).backward(cotangent)
    assert torch.equal(again.grad, want['x'])
    for key, parameter in module.named_parameters():
        assert torch.equal(parameter.grad, want[key]), key


def folded(name):
    module = load_golden_weights(MODULES[name]()).eval()
    fold_conv_norms(module)
    if isinstance(module, Branch):
        module.norm = nn.Identity()
        module.mixer.fold()
    return module


@pytest.mark.parametrize('size', [(2, 8, 5, 7), (1, 8, 1, 1), (3, 8, 6, 10)], ids=str)
@pytest.mark.parametrize('name', MODULES)
def test_folded_inference_equals_the_layers_in_float64(name, size):
    module, x = folded(name), last(golden_input(size))
    double = copy.deepcopy(module).double()
    with torch.no_grad():
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                assert_close(mode.__name__, module(x).clone(), double(x.double()), OUTPUT)


@pytest.mark.parametrize('name', MODULES)
@torch.no_grad()
def test_reordered_weights_follow_the_parameters_and_are_not_pickled(name):
    module, x = folded(name), last(golden_input((2, 8, 6, 6)))
    before = module(x)
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    for twin in (copy.deepcopy(module), torch.load(buffer, weights_only=False)):
        assert torch.equal(twin(x), before)
    for parameter in module.parameters():
        parameter.mul_(0.5)
    assert_close('changed', module(x), copy.deepcopy(module).double()(x.double()), OUTPUT)
    module.load_state_dict(twin.state_dict())
    assert torch.equal(module(x), before)


def test_fast_calls_are_taken_in_inference(monkeypatch):
    taken = []
    for name in ('folded_linear', 'linear_attention2d', 'depthwise_sum'):
        (plain,) = [each for each in dispatch._BACKENDS[name] if each.name == 'cpu']
        run = lambda *args, n=name, f=plain.run: taken.append(n) or f(*args)  # noqa: E731
        monkeypatch.setitem(
            dispatch._BACKENDS, name, (plain._replace(run=run), *dispatch._BACKENDS[name][1:])
        )
    with torch.no_grad():
        folded('mixer')(last(golden_input((2, 8, 6, 6))))
        folded('attention')(last(golden_input((2, 8, 6, 6))))
    loops = ['depthwise_sum'] if jit.refusal() is None else []
    assert taken == ['folded_linear', 'folded_linear', 'linear_attention2d', *loops]


def test_gradient_is_turned_to_the_layout_of_the_maps():
    strides = []
    x = last(golden_input((2, 8, 6, 6))).requires_grad_()
    middle = x * 1
    middle.register_hook(lambda grad: strides.append(grad.stride()))
    channels_last_gradient(middle).mean().backward()
    assert strides == [middle.stride()]
    assert torch.equal(x.grad, torch.full_like(x, 1 / x.numel()))


def test_weights_swapped_through_data_are_used():
    """As averaging hooks swap them: autograd does not count such writes."""
    module, x = RecConv2d(8, level=2).eval(), last(torch.randn(2, 8, 9, 7))
    with torch.no_grad():
        module(x)
        module.convs[1].weight.data.copy_(torch.randn(8, 1, 5, 5))
        want = recconv2d(
            x, module.down.weight, [conv.weight for conv in module.convs], backend='reference'
        )
        assert_close('y', module(x), want, OUTPUT)


@pytest.mark.parametrize('name', MODULES)
def test_second_derivatives_are_refused(name):
    module, x = MODULES[name]().train(), last(torch.randn(2, 8, 9, 7)).requires_grad_()
    (first,) = torch.autograd.grad(module(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match='second derivatives are not available here'):
        first.pow(2).sum().backward()
