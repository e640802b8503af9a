"""Networks with faster depthwise convolutions: the same outputs and gradients, and the way back."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

import mmlk
from mmlk.ops import DepthwiseConv2d, dispatch
from mmlk.surgery import AcceleratedConv2d
from tests.cases import GOLDEN_OPERATOR, TOLERANCE, assert_close
from tests.surgery.networks import NETWORKS, Net, depthwise, flat, network

LAYOUTS = {'contiguous': torch.contiguous_format, 'channels-last': torch.channels_last}
NONE_TAKEN = {'torchvision mobilenet_v2'}
"""3x3 kernels alone, which torch computes as fast."""


@pytest.fixture(scope='module', params=NETWORKS)
def built(request):
    """A name and the network of that name."""
    return request.param, network(request.param)


def images(layout, dtype=torch.float32, side=64):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 3, side, side, generator=generator).to(dtype)
    return x.contiguous(memory_format=LAYOUTS[layout])


def results(model, x):
    """Outputs, and gradients of image and parameters."""
    x = x.detach().requires_grad_()
    found = flat(model(x))
    generator = torch.Generator().manual_seed(2)
    loss = sum((each * torch.randn(each.shape, generator=generator)).sum() for each in found)
    leaves = [x, *(each for each in model.parameters() if each.requires_grad)]
    grads = torch.autograd.grad(loss, leaves, allow_unused=True)
    return [*found, *(each for each in grads if each is not None)]


@pytest.mark.slow
@pytest.mark.parametrize('layout', LAYOUTS)
def test_outputs_and_gradients_are_those_of_the_untouched_network(built, layout):
    name, model = built
    if (name, layout) == ('timm fastvit', 'channels-last'):
        layout = 'contiguous'  # torch's own gradient corrupts the heap for channels that multiply
    x = images(layout)
    want = results(model, x)
    exact = results(copy.deepcopy(model).double(), x.double())
    keys = list(model.state_dict())
    with mmlk.accelerate(model, x) as done:
        assert bool(done.taken) != (name in NONE_TAKEN)
        assert done.error <= TOLERANCE[torch.float32][0]
        assert list(model.state_dict()) == keys
        got = results(model, x)
    assert not any(isinstance(each, AcceleratedConv2d) for each in model.modules())
    for index, (mine, theirs, truth) in enumerate(zip(got, want, exact, strict=True)):
        noise = 2 * (theirs - truth).abs().max()
        bound = max(GOLDEN_OPERATOR * truth.std(correction=0), noise)
        assert (mine - truth).abs().max() <= bound, index
    for mine, theirs in zip(results(model, x), want, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


def test_what_is_taken_is_what_the_policy_says(net):
    last = mmlk.accelerate(net, images('channels-last'))
    assert last.taken == ('mixers.0', 'head.0')
    assert last.layers[1].reason == "torch's own convolution is as fast for this map and kernel"
    last.restore()
    done = mmlk.accelerate(net, images('contiguous'))
    assert done.taken == ('mixers.0', 'mixers.2', 'head.0')
    assert [each.what for each in done.layers] == ['7x7', '1x11', '5x5']
    lines = str(done).splitlines()
    assert lines[1].split() == ['mixers.0', '7x7', 'taken'] and len(lines) == 4
    done.restore()
    for layer in (net.mixers[0], net.mixers[2], net.head[0]):
        x = torch.randn(1, 6, 64, 64)
        assert dispatch.refusal_to_gain('depthwise_conv2d', x, layer.weight) is None


@pytest.mark.parametrize(
    ('shape', 'kernel', 'layout', 'gains'),
    [
        ((2, 8, 20, 20), 7, 'contiguous', True),
        ((2, 8, 20, 20), 7, 'channels-last', True),
        ((2, 8, 20, 20), 3, 'contiguous', False),
        ((2, 8, 20, 20), 3, 'channels-last', False),
        ((2, 8, 3, 3), 9, 'contiguous', True),  # clipped
    ],
)
def test_the_policy_is_asked_for_the_map_of_the_sample(shape, kernel, layout, gains):
    model = nn.Sequential(depthwise(8, kernel))
    done = mmlk.accelerate(model, torch.randn(shape).contiguous(memory_format=LAYOUTS[layout]))
    assert bool(done.taken) == gains
    assert gains or 'as fast' in done.layers[0].reason


def test_a_float64_network_agrees_to_its_own_precision(net):
    x = images('contiguous', torch.float64)
    want = results(net.double(), x)
    assert mmlk.accelerate(net, x).taken == ('mixers.0', 'mixers.2', 'head.0')
    for index, (mine, theirs) in enumerate(zip(results(net, x), want, strict=True)):
        assert_close(f'result {index}', mine, theirs, TOLERANCE[torch.float64][1])


@pytest.mark.parametrize('layout', LAYOUTS)
def test_channels_that_multiply_are_taken(layout):
    layer = nn.Conv2d(8, 24, 7, 2, 3, groups=8)
    x = torch.randn(2, 8, 21, 20).contiguous(memory_format=LAYOUTS[layout])
    want = F.conv2d(x.double(), layer.weight.double(), layer.bias.double(), 2, 3, 1, 8)
    assert mmlk.accelerate(nn.Sequential(layer), x).taken == ('0',)
    assert_close('map', layer(x), want, TOLERANCE[torch.float32][0])


LEFT = {
    'dilation': (depthwise(6, 7, dilation=3), 'has dilation (3, 3)'),
    'padding mode': (depthwise(6, 7, padding_mode='circular'), "padding_mode is 'circular'"),
    'no padding': (depthwise(6, 7, padding=0), 'padding is (0, 0)'),
    'even': (nn.Conv2d(6, 6, 4, padding='same', groups=6), 'kernel (4, 4) is even'),
    'ours': (DepthwiseConv2d(6, 7), 'this package computes it already'),
    'parametrised': (parametrizations.weight_norm(depthwise(6, 7)), 'are parametrised'),
    'subclass': (type('Mine', (nn.Conv2d,), {})(6, 6, 7, groups=6), 'Mine, whose call may differ'),
}


@pytest.mark.parametrize('kind', LEFT)
def test_layers_that_our_operators_cannot_stand_for_are_left(kind):
    layer, reason = LEFT[kind]
    model = nn.Sequential(layer, depthwise(6, 7))
    done = mmlk.accelerate(model, torch.randn(1, 6, 20, 20))
    assert reason in done.layers[0].reason
    assert done.taken == ('1',) and type(model[1]) is AcceleratedConv2d


def test_layers_that_are_not_called_or_replaced_are_left():
    model = nn.Sequential(depthwise(6, 7), depthwise(6, 7))
    model[0].forward = lambda x: x
    model.add_module('spare', nn.ModuleList([depthwise(6, 7)]))
    model.spare.forward = lambda x: x
    done = mmlk.accelerate(model, torch.randn(1, 6, 20, 20))
    assert [each.reason for each in done.layers] == [
        'its forward was replaced',
        None,
        'the sample does not call it',
    ]


def test_dense_convolutions_are_not_looked_at():
    model = nn.Sequential(nn.Conv2d(1, 4, 7, padding=3), nn.Conv2d(4, 4, 7, groups=2))
    done = mmlk.accelerate(model, torch.randn(1, 1, 20, 20))
    assert done.layers == ()
    assert str(done) == 'no depthwise convolution and no head of MMSegmentation in the network'


def test_padding_by_name_and_stride_are_taken():
    model = nn.Sequential(
        nn.Conv2d(6, 6, 7, padding='same', groups=6), depthwise(6, 7, stride=2, bias=False)
    )
    x = torch.randn(1, 6, 20, 20).contiguous(memory_format=torch.channels_last)
    want = model(x)
    assert mmlk.accelerate(model[0], x).taken == ('',)
    assert_close('map', model(x), want, TOLERANCE[torch.float32][0])


def test_shared_modules_tied_weights_and_hooks_go_on(net):
    net.mixers.append(net.mixers[0])
    net.mixers.append(depthwise(6, 7))
    net.mixers[4].weight = net.mixers[0].weight
    calls = []
    net.mixers[0].register_forward_hook(lambda *_: calls.append('after'))
    net.mixers[0].register_forward_pre_hook(lambda *_: calls.append('before'))
    x = images('contiguous')
    want = results(net, x)
    done = mmlk.accelerate(net, x)
    assert done.layers[0].names == ('mixers.0', 'mixers.3') and 'mixers.0, mixers.3' in str(done)
    calls.clear()
    for index, (mine, theirs) in enumerate(zip(results(net, x), want, strict=True)):
        assert_close(f'result {index}', mine, theirs, TOLERANCE[torch.float32][1])
    assert calls == ['before', 'after'] * 2
    assert net.mixers[4].weight is net.mixers[0].weight


def test_modes_random_numbers_and_statistics_are_as_before():
    model = nn.Sequential(
        depthwise(3, 7), nn.BatchNorm2d(3), nn.Dropout(), nn.Sequential(nn.ReLU())
    )
    model[3].eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [each.training for each in model.modules()]
    state = torch.get_rng_state()
    assert mmlk.accelerate(model, images('contiguous')).taken
    assert [each.training for each in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_copies_pickles_files_and_moves(net, tmp_path):
    x = images('contiguous')
    want = net(x)
    state = {key: value.clone() for key, value in net.state_dict().items()}
    done = mmlk.accelerate(net, x)
    torch.save(net, tmp_path / 'net.pth')
    copies = [
        copy.deepcopy(net),
        pickle.loads(pickle.dumps(net)),
        torch.load(tmp_path / 'net.pth', weights_only=False),
    ]
    done.restore()
    for each in copies:
        assert type(each.mixers[0]) is AcceleratedConv2d and type(net.mixers[0]) is nn.Conv2d
        assert_close('output', each(x), want, TOLERANCE[torch.float32][0])
        assert_close('double', each.double()(x.double()), want, TOLERANCE[torch.float32][0])
        each.float().train().eval()
        each.load_state_dict(state)
        assert mmlk.restore(each) == ('mixers.0', 'mixers.2', 'head.0')
        assert type(each.mixers[0]) is nn.Conv2d
        torch.testing.assert_close(each(x), want, rtol=0, atol=0)
        assert mmlk.restore(each) == ()
    net.load_state_dict(copies[0].state_dict())


def test_other_maps_and_changed_layers_are_computed_as_torch_does(net):
    done = mmlk.accelerate(net, images('contiguous'))
    plain = copy.deepcopy(net)
    mmlk.restore(plain)
    for x in (torch.randn(1, 3, 9, 5), torch.randn(3, 20, 20), images('channels-last', side=32)):
        assert_close('output', net(x), plain(x), TOLERANCE[torch.float32][0])
    for each in (net, plain):
        each.mixers[0].padding, each.mixers[0].dilation = (6, 6), (2, 2)
        each.mixers[2].padding = (0, 0)
    x = torch.randn(1, 3, 20, 20)
    torch.testing.assert_close(net(x), plain(x), rtol=0, atol=1e-6)
    assert len(done.taken) == 3


def test_twice_takes_nothing_more_and_each_handle_gives_back_its_own(net):
    first = mmlk.accelerate(net.mixers[0], torch.randn(1, 6, 20, 20))
    second = mmlk.accelerate(net, images('contiguous'))
    assert second.taken == ('mixers.2', 'head.0')
    assert second.layers[0].reason == 'this package computes it already'
    second.restore()
    second.restore()
    assert type(net.mixers[0]) is AcceleratedConv2d and type(net.head[0]) is nn.Conv2d
    first.restore()
    assert type(net.mixers[0]) is nn.Conv2d


def test_a_layer_parametrised_since_is_not_restored(net):
    done = mmlk.accelerate(net, images('contiguous'))
    parametrizations.weight_norm(net.mixers[2])
    for undo in (done.restore, lambda: mmlk.restore(net)):
        with pytest.raises(ValueError, match='restore: mixers.2 became a Parametrized.*undo'):
            undo()
        assert type(net.mixers[0]) is AcceleratedConv2d
    nn.utils.parametrize.remove_parametrizations(net.mixers[2], 'weight')
    assert len(mmlk.restore(net)) == 3


def untouched(model):
    return not any(
        isinstance(each, AcceleratedConv2d) or each._forward_pre_hooks for each in model.modules()
    )


def test_wrong_results_are_refused_and_nothing_is_changed(net, monkeypatch):
    forward = AcceleratedConv2d.forward
    monkeypatch.setattr(AcceleratedConv2d, 'forward', lambda self, x: 1.001 * forward(self, x))
    wrong = r'layer mixers.0 has the output off by .*e-03 .* as before'
    with pytest.raises(ValueError, match=wrong):
        mmlk.accelerate(net, images('contiguous'))
    assert untouched(net)
    assert mmlk.accelerate(net, images('contiguous'), tolerance=0.1).error > 5e-4


class Counting(nn.Module):
    """Keeps a state between calls that its output shows."""

    def __init__(self):
        super().__init__()
        self.layer, self.calls = depthwise(3, 7), 0

    def forward(self, x, scale=1.0):
        self.calls += 1
        return dict(found=[self.layer(x) * scale * self.calls], name='map')


def test_outputs_are_compared_wherever_they_are():
    model = Counting()
    with pytest.raises(ValueError, match='the network has the output off by .* a state between'):
        mmlk.accelerate(model, images('contiguous'))
    assert untouched(model)
    model.register_forward_pre_hook(lambda *_: setattr(model, 'calls', 0))
    for sample in ((images('contiguous'), 2.0), dict(x=images('contiguous'), scale=2.0)):
        assert mmlk.accelerate(model, sample).taken == ('layer',)
        mmlk.restore(model)


def test_samples_that_show_nothing_are_refused(net):
    x = images('contiguous')
    with pytest.raises(ValueError, match='not finite'):
        mmlk.accelerate(net, x * float('nan'))
    assert untouched(net)
    labels = nn.Sequential(net, nn.Flatten(2))
    labels.register_forward_hook(lambda *args: args[2].argmax(1))
    with pytest.raises(ValueError, match='no floating tensor'):
        mmlk.accelerate(labels, x)
    with pytest.raises(RuntimeError, match='expected input'):
        mmlk.accelerate(net, torch.randn(1, 5, 9, 9))
    assert untouched(net)


def test_a_failing_second_run_leaves_the_network_as_it_was(net, monkeypatch):
    def fail(self, x):
        raise KeyboardInterrupt

    monkeypatch.setattr(AcceleratedConv2d, 'forward', fail)
    with pytest.raises(KeyboardInterrupt):
        mmlk.accelerate(net, images('contiguous'))
    assert untouched(net)


def test_export_gives_plain_convolutions_and_scripting_says_why_not(net):
    x = images('contiguous', side=16)
    mmlk.accelerate(net, x)
    program = torch.export.export(net.eval(), (x,))
    targets = [str(each.target) for each in program.graph.nodes if each.op == 'call_function']
    assert sum('conv2d' in each for each in targets) == 5 and not any('mmlk' in t for t in targets)
    with pytest.raises(RuntimeError, match='torch.jit.script cannot compile AcceleratedConv2d'):
        torch.jit.script(net)
    buffer = io.BytesIO()
    torch.save(net.state_dict(), buffer)
    Net().load_state_dict(torch.load(io.BytesIO(buffer.getvalue()), weights_only=True))
