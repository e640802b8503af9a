"""Weights of real backbones in every wrapping that trainers give them, loaded through ``init_cfg``.

Scenarios: 18 wrappings x families, image channels x ways to adapt the stem, each of these refused
unasked.
"""

from __future__ import annotations

import pytest
import torch
from mmengine.model import ExponentialMovingAverage
from torch import nn
from torch.optim.swa_utils import AveragedModel

import mmlk.backbones  # noqa: F401  (registers the families)
from mmlk.registry import MODELS
from tests.cases import MICRO_ARCHS

NAMES = sorted(MODELS.module_dict.keys() & MICRO_ARCHS.keys())


def build(name: str, seed: int = 0, **options) -> nn.Module:
    """A micro backbone with values of its own."""
    backbone = MODELS.build(dict(type=f'mmlk.{name}', arch=MICRO_ARCHS[name], **options))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.uniform_(-1, 1, generator=generator)
    return backbone


class Model(nn.Module):
    """A backbone with a neighbour, as segmentors and detectors hold it."""

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self.backbone = backbone
        self.decode_head = nn.Linear(2, 2)


def under(prefix: str, state: dict) -> dict:
    return {prefix + key: value for key, value in state.items()}


def within(word: str, state: dict) -> dict:
    """``word`` inserted behind ``stages.<i>.``, as wrapping every stage does."""
    return {key.replace('stages.1.', f'stages.1.{word}.'): value for key, value in state.items()}


def whole(backbone: nn.Module) -> dict:
    return Model(backbone).state_dict()


# What is saved, and the options of ``init_cfg`` that it needs.
FORMS = {
    'bare': lambda b: (b.state_dict(), {}),
    'ddp': lambda b: (under('module.', b.state_dict()), {}),
    'compiled': lambda b: (torch.compile(b).state_dict(), {}),
    'compiled-stages': lambda b: (within('_orig_mod', b.state_dict()), {}),
    'compiled-ddp': lambda b: (under('module._orig_mod.', b.state_dict()), {}),
    'fsdp': lambda b: (under('_fsdp_wrapped_module.', b.state_dict()), {}),
    'fsdp-stages': lambda b: (within('_fsdp_wrapped_module', b.state_dict()), {}),
    'recomputed-stages': lambda b: (within('_checkpoint_wrapped_module', b.state_dict()), {}),
    'encoder': lambda b: (
        {**under('encoder.', b.state_dict()), 'decoder.weight': torch.ones(2)},
        {},
    ),
    'trainer': lambda b: ({'model': b.state_dict(), 'epoch': 3}, {}),
    'lightning': lambda b: ({'state_dict': under('model.', b.state_dict())}, {}),
    'whole-model': lambda b: ({'state_dict': whole(b)}, {}),
    'whole-model-prefix': lambda b: ({'state_dict': whole(b)}, dict(prefix='backbone')),
    'whole-model-dotted-prefix': lambda b: ({'state_dict': whole(b)}, dict(prefix='backbone.')),
    'whole-model-ddp': lambda b: (under('module.', whole(b)), dict(prefix='backbone')),
    'whole-model-compiled': lambda b: (torch.compile(Model(b)).state_dict(), {}),
    'mmengine-ema': lambda b: (
        {
            'state_dict': under('backbone.', build(type(b).__name__, seed=1).state_dict()),
            'ema_state_dict': ExponentialMovingAverage(Model(b)).state_dict(),
        },
        dict(prefer='ema_state_dict'),
    ),
    'torch-ema': lambda b: ({'model_ema': AveragedModel(b).state_dict()}, {}),
}


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('name', NAMES)
def test_every_wrapping_loads(tmp_path, name, form):
    source = build(name)
    content, options = FORMS[form](source)
    torch.save(content, tmp_path / 'a.pth')
    target = build(
        name,
        seed=2,
        init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'a.pth'), **options),
    )
    target.init_weights()
    want = source.state_dict()
    for key, value in target.state_dict().items():
        assert torch.equal(value, want[key]), key


def test_the_wrappings_are_real():
    """What the forms above imitate is what the libraries write."""
    backbone = build('InceptionNeXt')
    assert {'steps'} < set(ExponentialMovingAverage(backbone).state_dict())
    assert {'n_averaged'} < set(AveragedModel(backbone).state_dict())
    assert all(key.startswith('_orig_mod.') for key in torch.compile(backbone).state_dict())


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize(
    'channels, how', [(1, 'sum'), (1, 'repeat'), (4, 'repeat'), (12, 'repeat')]
)
def test_stem_is_adapted_as_timm_does(tmp_path, name, channels, how):
    adapt_input_conv = pytest.importorskip('timm.models').adapt_input_conv
    source = build(name)
    torch.save(source.state_dict(), tmp_path / 'a.pth')
    pretrained = dict(type='Pretrained', checkpoint=str(tmp_path / 'a.pth'), adapt_stem=how)
    target = build(name, seed=2, in_channels=channels, init_cfg=pretrained)
    target.init_weights()
    want = source.state_dict()
    stem = next(key for key, value in want.items() if value.ndim == 4)
    for key, value in target.state_dict().items():
        if key != stem:
            assert torch.equal(value, want[key]), key
    adapted = target.state_dict()[stem]
    if how == 'sum' or channels > 1:
        assert torch.equal(adapted, adapt_input_conv(channels, want[stem]))
    else:  # timm has no such way: three times the first slice
        assert torch.equal(adapted, 3 * want[stem][:, :1])


@pytest.mark.parametrize(
    'channels, options, words',
    [
        (4, {}, "takes 3 channels, the module 4; add adapt_stem='repeat'"),
        (1, {}, r"add adapt_stem='repeat' to init_cfg \(or 'sum', for grey images\)"),
        (4, dict(adapt_stem='sum'), "'sum' is for one channel, the module takes 4; use 'repeat'"),
        (4, dict(adapt_stem='mean'), "'mean' is not one of 'sum', 'repeat'"),
    ],
    ids=['four', 'one', 'sum-of-four', 'unknown'],
)
def test_stem_is_not_adapted_unasked(tmp_path, channels, options, words):
    torch.save(build('SLaK').state_dict(), tmp_path / 'a.pth')
    pretrained = dict(type='Pretrained', checkpoint=str(tmp_path / 'a.pth'), **options)
    target = build('SLaK', seed=2, in_channels=channels, init_cfg=pretrained)
    before = {key: value.clone() for key, value in target.state_dict().items()}
    with pytest.raises(ValueError, match=words):
        target.init_weights()
    assert all(torch.equal(value, before[key]) for key, value in target.state_dict().items())


def test_adapting_a_stem_that_fits_changes_nothing(tmp_path):
    source = build('SLaK')
    torch.save(source.state_dict(), tmp_path / 'a.pth')
    pretrained = dict(type='Pretrained', checkpoint=str(tmp_path / 'a.pth'), adapt_stem='repeat')
    target = build('SLaK', seed=2, init_cfg=pretrained)
    target.init_weights()
    want = source.state_dict()
    assert all(torch.equal(value, want[key]) for key, value in target.state_dict().items())
