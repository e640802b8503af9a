"""Every module of a network is seen: hooks fire, replaced forwards and swapped modules are used.

The number of calls is known without running anything: every module with a forward is called once,
`RecConv2d.down` once per level. Values are compared with the same change made to a network whose
modules all carry a hook, so that nothing can be computed in one, on the reference backend.
"""

import contextlib
import copy
import re

import pytest
import torch
from torch import nn

from mmlk.layers import DropPath
from mmlk.ops import RecConv2d
from tests.cases import TOLERANCE, assert_close
from tests.networks.families import FAMILIES, LAYOUTS, build, images

forms = pytest.mark.parametrize('folded', [False, True], ids=['training', 'folded'])
families = pytest.mark.parametrize('family', FAMILIES)
layouts = pytest.mark.parametrize('layout', LAYOUTS)


def called_modules(model):
    """Names of the modules that have a forward, and how often one forward of ``model`` calls them."""
    counts = {
        name: 1 for name, module in model.named_modules() if not isinstance(module, nn.ModuleList)
    }
    for name, module in model.named_modules():
        if isinstance(module, RecConv2d):
            counts[f'{name}.down'] = module.level
    return counts


def places(model):
    """One name of each place a module can have.

    Stages differ in their widths alone, and so do blocks of one class that keep their attention or
    borrow it; the last of each is taken, but those with modules that others lack are kept.
    """

    def block(match):
        return f'blocks.{getattr(model.get_submodule(match.group()), "shares", "")}'

    found = {}
    for name in called_modules(model):
        place = re.sub(r'^.*?blocks\.\d+', block, name)
        found[re.sub(r'(stages|downsample_layers)\.\d', '', place)] = name
    return list(found.values())


def run(model, x, folded):
    """Outputs as an application computes them: with gradients in training, without when folded."""
    with torch.set_grad_enabled(not folded):
        return model(x)


def every_hook(model, register):
    for name in called_modules(model):
        register(name, model.get_submodule(name))


def all_called(model):
    """``model`` with hooks on all modules, so that nothing is computed in one."""
    every_hook(model, lambda _, module: module.register_forward_hook(lambda *_: None))
    return model


def on_the_reference(model, x, monkeypatch):
    with monkeypatch.context() as patch, torch.no_grad():
        patch.setenv('MMLK_BACKEND', 'reference')
        return model(x)


def assert_same(got, want):
    for index, (mine, theirs) in enumerate(zip(got, want, strict=True)):
        assert_close(f'stage {index}', mine, theirs, 100 * TOLERANCE[torch.float32][0])


@families
@forms
@layouts
@pytest.mark.parametrize('kind', ['forward', 'forward_pre', 'full_backward'])
def test_hooks_on_all_modules_fire(family, folded, layout, kind, monkeypatch):
    model, x = build(family, folded, drop_path_rate=0.0), images(family, layout)
    want = on_the_reference(all_called(copy.deepcopy(model)), x, monkeypatch)
    found = dict.fromkeys(called_modules(model), 0)

    def register(name, module):
        def hook(*_):
            found[name] += 1

        getattr(module, f'register_{kind}_hook')(hook)

    every_hook(model, register)
    if kind == 'full_backward':
        outputs = model(x.requires_grad_())
        sum(y.square().mean() for y in outputs).backward()
    else:
        outputs = run(model, x, folded)
    assert_same(outputs, want)
    assert found == called_modules(model)


@families
@forms
@layouts
def test_a_hook_on_one_module_alone_fires(family, folded, layout):
    model, x = build(family, folded), images(family, layout)
    expected, found = called_modules(model), {}
    expected = {name: expected[name] for name in places(model)}
    for name in expected:
        calls = []
        handle = model.get_submodule(name).register_forward_hook(lambda *_, c=calls: c.append(1))
        run(model, x, folded)
        handle.remove()
        found[name] = len(calls)
    assert found == expected


def doubled(y):
    return tuple(doubled(each) for each in y) if isinstance(y, tuple) else 2 * y


@contextlib.contextmanager
def replaced_forward(model, name):
    module = model.get_submodule(name)
    plain = module.forward
    module.forward = lambda *args, **options: doubled(plain(*args, **options))
    yield
    del module.forward


@contextlib.contextmanager
def swapped_for_subclass(model, name):
    module = model.get_submodule(name)
    kind = type(module)

    class Doubled(kind):
        def forward(self, *args, **options):
            return doubled(kind.forward(self, *args, **options))

    module.__class__ = Doubled
    yield
    module.__class__ = kind


class Wrapper(nn.Module):
    """A layer of another library around the one that it replaces."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *args):
        return doubled(self.inner(*args))


@contextlib.contextmanager
def swapped_for_wrapper(model, name):
    parent, _, last = name.rpartition('.')
    parent, module = model.get_submodule(parent), model.get_submodule(name)
    setattr(parent, last, Wrapper(module))
    yield
    setattr(parent, last, module)


CHANGES = (replaced_forward, swapped_for_subclass, swapped_for_wrapper)


@pytest.mark.slow
@families
@forms
def test_a_replaced_module_is_used(family, folded, monkeypatch):
    """Compared with a forward hook that doubles the output, everything called one by one.

    The network has been called before and is changed back after each place.
    """
    model, x = build(family, folded, drop_path_rate=0.0), images(family, 'channels_last')
    expected = all_called(copy.deepcopy(model))
    plain = run(model, x, folded)
    for name in places(model):
        module = model.get_submodule(name)
        if not name or isinstance(module, (nn.Identity, DropPath)) and folded:
            continue
        handle = expected.get_submodule(name).register_forward_hook(lambda _m, _i, y: doubled(y))
        want = on_the_reference(expected, x, monkeypatch)
        handle.remove()
        for change in CHANGES:
            try:
                with change(model, name):
                    assert_same(run(model, x, folded), want)
            except Exception as error:
                raise AssertionError(f'{change.__name__}, {name}: {error}') from error
    assert_same(run(model, x, folded), plain)


@families
@layouts
def test_modules_named_by_feature_info_fire(family, layout):
    model, maps = build(family), {}
    for info in model.feature_info:
        model.get_submodule(info['module']).register_forward_hook(
            lambda _m, _i, y, name=info['module']: maps.__setitem__(name, y)
        )
    model(images(family, layout))
    found = {name: y.shape[1] for name, y in maps.items()}
    assert found == {info['module']: info['num_chs'] for info in model.feature_info}
