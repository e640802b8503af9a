"""What libraries change in networks: weights computed anew, other layers, offloading, quantisation.

Every change is made to two equal networks; one computes with ``MMLK_BACKEND=reference``.
"""

import copy
import warnings

import accelerate
import pytest
import torch
from torch import nn
from torch.ao import quantization
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from mmlk import ops
from tests.cases import TOLERANCE, assert_close
from tests.networks.families import FAMILIES, build, images

BOUND = 100 * TOLERANCE[torch.float32][0]
FORMS = ('training', 'eval', 'folded')
pytestmark = pytest.mark.filterwarnings('ignore')
families = pytest.mark.parametrize('family', FAMILIES)
forms = pytest.mark.parametrize('form', FORMS)


def network(family, form):
    model = build(family, form == 'folded')
    return model.train(form == 'training')


def layers(model):
    """Convolutions and linear layers that hold a weight."""
    kinds = (nn.Conv2d, nn.Linear)
    return [each for each in model.modules() if isinstance(each, kinds) and each.weight.dim() > 1]


def assert_same(got, want, bound=BOUND):
    for index, (mine, theirs) in enumerate(zip(got, want, strict=True)):
        assert_close(f'stage {index}', mine, theirs, bound)


def pruned(model):
    for layer in layers(model):
        prune.l1_unstructured(layer, 'weight', 0.3)
    return model


def weight_normed(model):
    for layer in layers(model):
        weight_norm(layer)
        layer.weight_g.data.mul_(1.2)
    return model


def weight_parametrised(model):
    for layer in layers(model):
        parametrizations.weight_norm(layer)
        layer.parametrizations.weight.original0.data.mul_(1.2)
    return model


def spectrally_normed(model):
    for index, layer in enumerate(layers(model)):
        torch.manual_seed(index)
        spectral_norm(layer, n_power_iterations=5)
        # In eval mode it divides by what random vectors have made of the norm, close to zero at times.
        training = layer.training
        layer.train()
        for hook in layer._forward_pre_hooks.values():
            hook(layer, ())
        layer.train(training)
    return model


def spectrally_parametrised(model):
    for index, layer in enumerate(layers(model)):
        torch.manual_seed(index)
        parametrizations.spectral_norm(layer)
    return model


class Adapted(nn.Module):
    """A frozen layer and two narrow ones of its class beside it, as adapters are made (PEFT's LoRA)."""

    def __init__(self, layer):
        super().__init__()
        self.base_layer = layer
        kind = type(layer)
        if isinstance(layer, nn.Linear):
            self.down = nn.Linear(layer.in_features, 2, bias=False)
            self.up = nn.Linear(2, layer.out_features, bias=False)
        else:
            steps = layer.kernel_size, layer.stride, layer.padding
            kind = nn.Conv2d if kind.__name__.startswith('Folded') else kind
            self.down = kind(layer.in_channels, 2, *steps, bias=False)
            self.up = kind(2, layer.out_channels, (1, 1), (1, 1), bias=False)
        generator = torch.Generator().manual_seed(0)
        for each in (self.down, self.up):
            each.weight.data.copy_(0.3 * torch.randn(each.weight.shape, generator=generator))

    def forward(self, x):
        return self.base_layer(x) + self.up(self.down(x))


def adapted(model):
    """Adapters on all linear layers and all convolutions of one group."""
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            whole = isinstance(layer, nn.Conv2d) and layer.groups == 1
            if isinstance(layer, nn.Linear) or whole:
                setattr(parent, name, Adapted(layer))
    return model


def offloaded(model):
    """Values come with a call of a layer and go after it; between them parameters are on meta."""
    return accelerate.cpu_offload(model)


def freed(model):
    """Storages are freed after each call of a module and filled before the next, by hooks."""
    for module in model.modules():
        own = [each for each in module._parameters.values() if each is not None]
        if not own:
            continue
        values = [each.detach().clone() for each in own]

        def fill(_module, _args, own=own, values=values):
            for each, value in zip(own, values):
                each.untyped_storage().resize_(value.untyped_storage().nbytes())
                each.data.copy_(value)

        def free(_module, _args, _output, own=own):
            for each in own:
                each.untyped_storage().resize_(0)

        module.register_forward_pre_hook(fill)
        module.register_forward_hook(free)
        free(None, None, None)
    return model


def observed(model):
    """Observers as hooks, as static quantisation begins."""
    model.qconfig = quantization.default_qconfig
    return quantization.prepare(model.eval(), inplace=True)


def trained_with_quantisation(model):
    """Layers that round their weights, of a class of torch's."""
    model.qconfig = quantization.default_qat_qconfig
    model.train()
    return quantization.prepare_qat(model, inplace=True)


CHANGES = [
    pruned,
    weight_normed,
    weight_parametrised,
    spectrally_normed,
    spectrally_parametrised,
    adapted,
    offloaded,
    freed,
    observed,
    trained_with_quantisation,
]
# Values that a backward pass needs are gone by then.
WITHOUT_GRADIENTS = (offloaded, freed)
# Eight bits of an activation may round the other way.
ROUNDING = (trained_with_quantisation,)


@families
@forms
@pytest.mark.parametrize('change', CHANGES)
def test_changed_networks_compute_what_the_reference_does(family, form, change, monkeypatch):
    x = images(family, 'channels_last')
    model, other = (change(network(family, form)) for _ in range(2))
    if change in WITHOUT_GRADIENTS and (family, form) == ('dcls_convnext', 'training'):
        # Positions are clamped before any layer is called and could bring its values.
        with torch.no_grad(), pytest.raises(RuntimeError, match='storage of an operand|on meta'):
            model(x)
        return
    if change in WITHOUT_GRADIENTS or form != 'training':
        context = torch.no_grad()
    else:
        context = torch.enable_grad()
    with context:
        for _ in range(2):  # the second call finds whatever the first has kept
            got = list(model(x))
            with monkeypatch.context() as patch:
                patch.setenv('MMLK_BACKEND', 'reference')
                want = list(other(x))
            (assert_same_but_for_rounding if change in ROUNDING else assert_same)(got, want)
    if got[0].requires_grad and change not in ROUNDING:
        assert_gradients(model, got, other, want)


def assert_same_but_for_rounding(got, want):
    for mine, theirs in zip(got, want, strict=True):
        assert (mine - theirs).abs().mean() <= 0.01 * theirs.abs().mean()


def assert_gradients(model, got, other, want):
    bound = 100 * TOLERANCE[torch.float32][1]
    for outputs in (got, want):
        sum((y * y.detach().flip(0)).mean() for y in outputs).backward()
    largest = max(
        each.grad.abs().max() for each in other.parameters() if each.grad is not None
    ).item()
    for (name, mine), theirs in zip(model.named_parameters(), other.parameters(), strict=True):
        assert (mine.grad is None) == (theirs.grad is None), name
        if theirs.grad is not None:
            error = (mine.grad - theirs.grad).abs().max().item()
            assert error <= bound * largest, f'{name}: {error:.3g} of {largest:.3g}'


@families
@pytest.mark.parametrize('form', ['eval', 'folded'])
def test_weights_on_disk(family, form, tmp_path):
    """Parts of the network on disk and parts in memory, as a map of devices says."""
    model, x = network(family, form), images(family, 'channels_last')
    places = {name: 'disk' if name == 'stages' else 'cpu' for name, _ in model.named_children()}
    own = [name for name, _ in model.named_parameters() if '.' not in name]
    with torch.no_grad():
        want = model(x)
        model = accelerate.dispatch_model(
            model,
            {**places, **dict.fromkeys(own, 'cpu')},
            main_device='cpu',
            offload_dir=tmp_path,
            force_hooks=True,
        )
        assert any(each.is_meta for each in model.parameters())
        for _ in range(2):
            assert_same(model(x), want)


@families
@pytest.mark.parametrize('form', ['eval', 'folded'])
def test_dynamic_quantisation(family, form, monkeypatch):
    """It swaps ``nn.Linear`` alone; SLaK and DCLS-ConvNeXt have two in each block."""
    model, x = network(family, form), images(family, 'channels_last')
    with torch.no_grad():
        want = model(x)
        small = quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)
        got = small(x)
        for mine, theirs in zip(got, want, strict=True):
            assert (mine - theirs).abs().mean() <= 0.1 * theirs.abs().mean()
        with monkeypatch.context() as patch:
            patch.setenv('MMLK_BACKEND', 'reference')
            assert_same_but_for_rounding(got, copy.deepcopy(small)(x))
    quantised = [
        each for each in small.modules() if isinstance(each, torch.ao.nn.quantized.dynamic.Linear)
    ]
    assert len(quantised) == len([each for each in model.modules() if type(each) is nn.Linear])


@families
@pytest.mark.parametrize('form', ['eval', 'folded'])
def test_static_quantisation_is_refused(family, form):
    """Layers of eight-bit integers take no maps of floats, and maps of integers have no operators.

    torch converts its own layers alone: a folded network without any stays what it was.
    """
    model, x = observed(network(family, form)), images(family)
    with torch.no_grad(), warnings.catch_warnings():
        want = model(x)
        small = quantization.convert(model)
        if not any(type(each) in (nn.Conv2d, nn.Linear) for each in model.modules()):
            assert form == 'folded'
            assert_same_but_for_rounding(small(x), want)
            return
        with pytest.raises(NotImplementedError, match='quantized|QuantizedCPU'):
            small(x)


@families
@forms
def test_scripting_is_refused_with_the_reason_and_the_way_out(family, form, monkeypatch):
    model, x = network(family, form), images(family)
    with pytest.raises(RuntimeError, match=r'script cannot compile \w+: .*torch\.export\.export'):
        torch.jit.script(model)
    if form == 'folded':
        with torch.no_grad():
            traced = torch.jit.trace(model, x)
            monkeypatch.setenv('MMLK_BACKEND', 'reference')
            assert_same(traced(x.flip(0)), model(x.flip(0)))


LAYERS = [
    lambda: ops.InceptionDWConv2d(16),
    lambda: ops.LargeKernelDWConv2d(8, 13, 3),
    lambda: ops.RecConv2d(8, level=2),
    lambda: ops.DepthwiseConv2d(8, 7),
    lambda: ops.PointwiseConv2d(8, 8, 1),
    lambda: ops.PatchConv2d(8, 8, 2, 2),
    lambda: ops.DCLSConv1d(8, 8, 3, 7),
    lambda: ops.DCLSConv2d(8, 8, 3, 7),
    lambda: ops.DCLSConv3d(8, 8, 3, 7),
    lambda: ops.DCLSDepthwiseConv2d(8, 3, 7),
]


@pytest.mark.parametrize('make', LAYERS)
def test_scripting_a_layer_alone_is_refused_too(make):
    with pytest.raises(RuntimeError, match='script cannot compile'):
        torch.jit.script(nn.Sequential(make()))
