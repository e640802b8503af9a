"""Choosing a backend, saying why, and falling back where a registered operator has no place."""

import threading

import pytest
import torch

from mmlk.ops import InceptionDWConv2d, depthwise_conv2d, dispatch, explain, jit
from tests.cases import TOLERANCE, assert_close


@pytest.fixture
def arguments():
    return torch.randn(1, 4, 9, 9), torch.randn(4, 1, 7, 7)


def test_explain_names_the_backend_used_and_its_routes(arguments):
    text = explain(depthwise_conv2d, *arguments)
    assert 'cpu: used (forward ' in text
    assert 'reference: not used, an earlier backend was' in text
    assert explain('depthwise_conv2d', *arguments) == text


def test_explain_binds_arguments_as_the_call_does(arguments):
    x, weight = arguments
    by_name = explain(depthwise_conv2d, x, stride=2, weight=weight)
    assert by_name == explain(depthwise_conv2d, x, weight, None, (2, 2))
    assert by_name != explain(depthwise_conv2d, x, weight)
    with pytest.raises(TypeError, match='strides'):
        explain(depthwise_conv2d, x, weight, strides=2)
    with pytest.raises(ValueError, match='stride .* must be positive'):
        explain(depthwise_conv2d, x, weight, stride=0)


def test_explain_gives_the_reason_of_a_refusal(arguments):
    meta = [each.to('meta') for each in arguments]
    text = explain(depthwise_conv2d, *meta)
    assert 'cpu: not used, the input is on meta' in text
    assert 'reference: used' in text
    assert depthwise_conv2d(*meta).shape == (1, 4, 9, 9)


def test_explain_follows_a_forced_backend(arguments, monkeypatch):
    assert "cpu: not used, 'reference' is forced" in explain(
        depthwise_conv2d, *arguments, backend='reference'
    )
    monkeypatch.setenv('MMLK_BACKEND', 'reference')
    assert 'reference: used' in explain(depthwise_conv2d, *arguments)


def test_forcing_a_backend_that_refuses_raises_with_its_reason(arguments, monkeypatch):
    meta = [each.to('meta') for each in arguments]
    with pytest.raises(RuntimeError, match="depthwise_conv2d: backend 'cpu'.*is on meta"):
        depthwise_conv2d(*meta, backend='cpu')
    monkeypatch.setenv('MMLK_BACKEND', 'cpu')
    with pytest.raises(RuntimeError, match='is on meta'):
        depthwise_conv2d(*meta)


def test_unknown_backends_are_refused_with_the_choices(arguments, monkeypatch):
    with pytest.raises(ValueError, match="unknown backend 'cuda'.*'cpu', 'reference'"):
        depthwise_conv2d(*arguments, backend='cuda')
    with pytest.raises(ValueError, match='explain: .* is not an operator with backends'):
        explain('conv2d', *arguments)
    monkeypatch.setenv('MMLK_BACKEND', 'fastest')
    with pytest.raises(ValueError, match="unknown backend 'fastest'"):
        depthwise_conv2d(*arguments)


def test_environment_chooses_the_reference(arguments, monkeypatch):
    monkeypatch.setenv('MMLK_BACKEND', 'reference')
    arguments[0].requires_grad_()
    assert 'Convolution' in depthwise_conv2d(*arguments).grad_fn.name()


@pytest.fixture
def extra_backend():
    before = dict(dispatch._BACKENDS)
    yield
    dispatch._BACKENDS.clear()
    dispatch._BACKENDS.update(before)


def test_a_new_backend_slots_in_before_the_others(arguments, extra_backend):
    wanted = torch.zeros(1)
    dispatch.register(
        'depthwise_conv2d',
        dispatch.Backend(
            'triton',
            lambda *args: wanted,
            lambda x, *_: None if x.shape[1] == 4 else f'{x.shape[1]} channels',
        ),
    )
    assert dispatch.backends('depthwise_conv2d') == ('triton', 'cpu', 'reference')
    assert depthwise_conv2d(*arguments) is wanted
    other = torch.randn(1, 3, 9, 9), torch.randn(3, 1, 7, 7)
    assert depthwise_conv2d(*other).shape == (1, 3, 9, 9)
    assert 'triton: not used, 3 channels' in explain(depthwise_conv2d, *other)
    with pytest.raises(ValueError, match='register: backend'):
        dispatch.register('depthwise_conv2d', dispatch.Backend('other', None, None))


@pytest.mark.parametrize('strict', [False, True])
def test_exported_graph_holds_plain_operators(strict):
    module = InceptionDWConv2d(16).eval()
    program = torch.export.export(module, (torch.randn(1, 16, 8, 8),), strict=strict)
    targets = [str(node.target) for node in program.graph.nodes if node.op == 'call_function']
    assert sum('aten.conv2d' in each for each in targets) == 3
    assert not [each for each in targets if 'mmlk' in each]


def test_traced_graph_holds_plain_operators(arguments):
    graph = str(torch.jit.trace(lambda x: depthwise_conv2d(x, arguments[1]), arguments[0]).graph)
    assert 'aten::_convolution' in graph
    assert 'mmlk::' not in graph


def test_functional_transforms_fall_back_to_the_reference():
    x, weight = torch.randn(3, 1, 4, 9, 9), torch.randn(4, 1, 7, 7)
    got = torch.vmap(depthwise_conv2d, in_dims=(0, None))(x, weight)
    assert_close(
        'y',
        got.flatten(0, 1),
        depthwise_conv2d(x.flatten(0, 1), weight),
        TOLERANCE[torch.float32][0],
    )
    gradient = torch.func.grad(lambda w: depthwise_conv2d(x[0], w).sum())(weight)
    assert gradient.shape == weight.shape


def test_threads_agree(arguments):
    want, results = depthwise_conv2d(*arguments), [None] * 8

    def work(index):
        results[index] = depthwise_conv2d(*arguments)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(each, want) for each in results)


@pytest.mark.parametrize(
    'x,weight,kwargs,message',
    [
        ((4, 9, 9), (4, 1, 3, 3), {}, 'x has shape'),
        ((1, 4, 9, 9), (5, 1, 3, 3), {}, 'weight has shape'),
        ((1, 4, 9, 9), (4, 2, 3, 3), {}, 'weight has shape'),
        ((1, 4, 9, 9), (4, 1, 4, 3), {}, 'is even'),
        ((1, 4, 9, 9), (4, 1, 3, 3), {'stride': 0}, 'must be positive'),
        ((1, 4, 9, 9), (4, 1, 3, 3), {'bias': torch.zeros(3)}, 'bias has shape'),
    ],
)
def test_depthwise_says_what_is_wrong(x, weight, kwargs, message):
    with pytest.raises(ValueError, match=f'depthwise_conv2d: .*{message}'):
        depthwise_conv2d(torch.randn(x), torch.randn(weight), **kwargs)


def test_mixed_dtypes_are_refused_outside_autocast(arguments):
    with pytest.raises(ValueError, match='depthwise_conv2d: x is torch.float64 but weight is'):
        depthwise_conv2d(arguments[0].double(), arguments[1])


def families():
    """A small network of every family and series, in training and folded."""
    from mmlk.backbones import DCLSConvNeXt, InceptionNeXt, RecNeXt, SLaK

    small = dict(depths=(1, 1, 1, 1), dims=(16, 32, 64, 128))
    return {
        'InceptionNeXt': lambda: InceptionNeXt(small),
        'SLaK': lambda: SLaK(small),
        'DCLSConvNeXt': lambda: DCLSConvNeXt(small),
        'RecNeXt-M': lambda: RecNeXt(dict(small, series='m')),
        'RecNeXt-A': lambda: RecNeXt(dict(small, series='a')),
        'RecNeXt-stride8': lambda: RecNeXt(dict(small, series='stride8')),
    }


@pytest.mark.parametrize('folded', [False, True], ids=['training', 'folded'])
@pytest.mark.parametrize('family', families())
def test_the_reference_turns_everything_off(family, folded, monkeypatch):
    """No compiled loop is launched and no hand-written node is built, fused blocks included."""
    network = families()[family]()
    x = torch.randn(2, 3, 128, 128).contiguous(memory_format=torch.channels_last)
    launches = []
    launch = jit.engine.Compiled.__call__
    monkeypatch.setattr(
        jit.engine.Compiled, '__call__', lambda self, *a: launches.append(1) or launch(self, *a)
    )

    def run():
        launches.clear()
        if folded:
            with torch.no_grad():
                return network(x)
        outputs = network(x)
        sum(y.sum() for y in outputs).backward()
        return outputs

    if folded:
        network.switch_to_deploy()
    run()
    if jit.refusal() is None:
        assert launches
    monkeypatch.setenv('MMLK_BACKEND', 'reference')
    outputs = run()
    assert not launches
    seen, waiting = set(), [y.grad_fn for y in outputs if y.grad_fn is not None]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            waiting += [each for each, _ in node.next_functions]
    own = {type(node).__name__.removesuffix('Backward') for node in seen} & set(
        dispatch.operators()
    )
    assert not own


def test_a_gain_is_expected_where_the_policy_has_another_way_than_torch(monkeypatch):
    x = torch.randn(1, 4, 20, 20)

    def reason(*args):
        return dispatch.refusal_to_gain('depthwise_conv2d', *args)

    three, seven = torch.randn(4, 1, 3, 3), torch.randn(4, 1, 7, 7)
    torchs = "torch's own convolution is as fast for this map and kernel"
    assert reason(x, three) == torchs and reason(x, seven) is None
    assert reason(x.double(), three.double()) == torchs
    assert reason(x.to(torch.bfloat16), three.to(torch.bfloat16)) is None
    assert reason(x[:, :, :3, :3], torch.randn(4, 1, 7, 3)) is None  # the kernel is clipped
    wide = torch.randn(8, 1, 3, 3)
    assert dispatch.refusal_to_gain('expanding_depthwise_conv2d', x, wide) == torchs
    last = x.contiguous(memory_format=torch.channels_last)
    assert dispatch.refusal_to_gain('expanding_depthwise_conv2d', last, wide) is None
    assert 'cpu: the input is on meta' in reason(x.to('meta'), seven.to('meta'))
    with pytest.raises(ValueError, match='expected \\(4, 1, kh, kw\\)'):
        reason(x, wide)
    monkeypatch.setenv(dispatch.ENVIRONMENT, 'reference')
    assert 'cpu: another backend is forced' in reason(x, seven)
