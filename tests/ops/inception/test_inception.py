"""The Inception operator's module against recorded outputs and gradients of the authors' code."""

from fractions import Fraction

import pytest
import torch

from mmlk.ops import InceptionDWConv2d, inception_dwconv2d
from tests.cases import GOLDEN_OPERATOR
from tests.golden_weights import golden_input, load_golden, load_golden_weights, sampled

CASES = [
    'c96-default',
    'c40-k9-r4',
    'c20-smaller-than-kernel',
    'c24-no-identity',
    'c8-1x1-map',
    'c128-k7',
    'c1024-default',
]


def recorded_module(golden):
    """The module of a recorded case; the ratio 1/3 was recorded with nine digits."""
    ratio = float(Fraction(golden['args']['branch_ratio']).limit_denominator(100))
    return InceptionDWConv2d(golden['in_channels'], **{**golden['args'], 'branch_ratio': ratio})


def check(name, tensor, summary):
    got, want = sampled(tensor, summary)
    torch.testing.assert_close(
        got, want, rtol=GOLDEN_OPERATOR, atol=GOLDEN_OPERATOR, msg=lambda text: f'{name}: {text}'
    )


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize('case', CASES)
def test_module_equals_the_recorded_operator(case, memory_format):
    golden = load_golden(f'inceptionnext/operator-{case}')
    module = load_golden_weights(recorded_module(golden))
    x = golden_input(golden['input']['shape'], golden['input']['seed'])
    x = x.contiguous(memory_format=memory_format).requires_grad_()
    out = module(x)
    (out * golden_input(out.shape, seed=1)).sum().backward()
    check('output', out, golden['output'])
    check('grad_input', x.grad, golden['grad_input'])
    for name, parameter in module.named_parameters():
        check(name, parameter.grad, golden['grad_params'][name])


@pytest.mark.parametrize('case', CASES)
def test_state_dict_is_the_published_one(case):
    golden = load_golden(f'inceptionnext/operator-{case}')
    module = recorded_module(golden)
    assert [[key, list(value.shape)] for key, value in module.state_dict().items()] == [
        [key, shape] for key, shape, _ in golden['state_dict']
    ]


@pytest.mark.parametrize(
    'arguments,message',
    [
        ((64, 4), 'must both be odd'),
        ((64, 3, 10), 'must both be odd'),
        ((7,), 'gives branches of 0'),
        ((64, 3, 11, 0.5), 'gives branches of 32'),
    ],
)
def test_impossible_modules_are_refused(arguments, message):
    with pytest.raises(ValueError, match=f'InceptionDWConv2d: .*{message}'):
        InceptionDWConv2d(*arguments)


def test_wrong_channels_are_refused():
    module = InceptionDWConv2d(16)
    with pytest.raises(ValueError, match='InceptionDWConv2d: x has shape .* expected 16 channels'):
        module(torch.randn(1, 24, 8, 8))


GOOD = {
    'weight_hw': (2, 1, 3, 3),
    'bias_hw': (2,),
    'weight_w': (2, 1, 1, 11),
    'bias_w': (2,),
    'weight_h': (2, 1, 11, 1),
    'bias_h': (2,),
}


@pytest.mark.parametrize(
    'name,shape,message',
    [
        ('x', (1, 5, 8, 8), 'C >= 6'),
        ('weight_w', (2, 1, 11, 1), 'no depthwise kernel'),
        ('weight_h', (3, 1, 11, 1), 'no depthwise kernel'),
        ('weight_hw', (2, 1, 2, 3), 'even kernel'),
        ('bias_h', (3,), 'bias_h has shape'),
    ],
)
def test_function_says_what_is_wrong(name, shape, message):
    shapes = {'x': (1, 16, 8, 8), **GOOD, name: shape}
    with pytest.raises(ValueError, match=f'inception_dwconv2d: .*{message}'):
        inception_dwconv2d(**{key: torch.randn(each) for key, each in shapes.items()})


def test_module_shows_its_split():
    assert 'split=(60, 12, 12, 12)' in repr(InceptionDWConv2d(96))
