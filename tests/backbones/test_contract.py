"""What holds for every registered backbone; a new family is tested by being registered."""

import copy

import pytest
import torch

import mmlk.backbones  # noqa: F401  (fills the registry)
from mmlk.networks.base import Network
from mmlk.registry import MODELS
from tests.cases import MICRO_ARCHS, TOLERANCE, assert_close, away

NAMES = sorted(
    name
    for name, kind in MODELS.module_dict.items()
    if isinstance(kind, type) and issubclass(kind, Network)
)
OUTPUT, GRADIENT = TOLERANCE[torch.float32]


def build(name, **options):
    torch.manual_seed(0)
    return away(MODELS.build(dict(type=f'mmlk.{name}', arch=MICRO_ARCHS[name], **options)))


def images(height=64, width=64):
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(1))


def step(model, x):
    """Outputs of one training step, and the gradients it leaves."""
    outputs = model(x)
    sum((y * torch.linspace(-1, 1, y.numel()).reshape(y.shape)).sum() for y in outputs).backward()
    return outputs, {k: p.grad for k, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize('name', NAMES)
def test_every_registered_backbone_has_a_micro_variant(name):
    assert name in MICRO_ARCHS


@pytest.mark.parametrize('name', NAMES)
def test_outputs_match_what_the_backbone_declares(name):
    model = build(name, out_indices=(1, 3)).eval()
    outputs = model(images())
    assert [y.shape[1] for y in outputs] == list(model.out_channels)
    assert [64 // y.shape[2] for y in outputs] == list(model.out_strides)
    assert [info['num_chs'] for info in model.feature_info] == list(model.dims)
    assert [info['reduction'] for info in model.feature_info] == list(model.strides)


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('size', [(97, 131), (33, 70)])
def test_odd_sizes_and_channels_last_agree_with_contiguous(name, size):
    model = build(name).eval()
    x = images(*size)
    with torch.no_grad():
        for got, want in zip(
            model(x.contiguous(memory_format=torch.channels_last)), model(x), strict=True
        ):
            assert_close(name, got, want, 10 * OUTPUT)


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_outputs_have_the_layout_of_the_image(name, layout):
    # RoIAlign of MMCV reads any map as if it were contiguous, so this decides what a detector sees.
    with torch.no_grad():
        for y in build(name).eval()(images(97, 131).contiguous(memory_format=layout)):
            assert y.is_contiguous(memory_format=layout)


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('frozen_stages', [0, 2, 4])
def test_frozen_parts_neither_learn_nor_leave_eval(name, frozen_stages):
    model = build(name, frozen_stages=frozen_stages, output_norm=True).train()
    frozen = [
        *model.stem_modules(),
        *(m for i in range(frozen_stages) for m in model.stage_modules(i)),
    ]
    before = copy.deepcopy(model.state_dict())
    step(model, images())
    for module in frozen:
        assert not any(m.training for m in module.modules())
        assert all(p.grad is None and not p.requires_grad for p in module.parameters())
    learning = [k for k, p in model.named_parameters() if p.requires_grad]
    assert all(
        torch.equal(value, before[key])
        for key, value in model.state_dict().items()
        if model.layer_location(key).kind != 'norm'
        and (frozen_stages == 4 or model.layer_location(key).kind == 'stem')
    )
    assert (frozen_stages == 4) == all(model.layer_location(k).kind == 'norm' for k in learning)


@pytest.mark.parametrize('name', NAMES)
def test_norm_eval_keeps_running_statistics(name):
    model = build(name, norm_eval=True).train()
    before = {k: v.clone() for k, v in model.named_buffers()}
    model(images())
    for key, value in model.named_buffers():
        assert torch.equal(value, before[key]), key
    assert model.training


@pytest.mark.parametrize('name', NAMES)
def test_recomputation_changes_no_value(name):
    plain, saving = build(name).train(), build(name, with_cp=True).train()
    saving.load_state_dict(plain.state_dict())
    x = images()
    (outputs, gradients), (outputs_cp, gradients_cp) = step(plain, x), step(saving, x)
    for y, y_cp in zip(outputs, outputs_cp, strict=True):
        assert_close('output', y_cp, y, OUTPUT)
    assert gradients.keys() == gradients_cp.keys()
    for key, gradient in gradients.items():
        assert_close(key, gradients_cp[key], gradient, 10 * GRADIENT)
    for key, value in plain.named_buffers():
        assert_close(key, saving.get_buffer(key), value, OUTPUT)


@pytest.mark.parametrize('name', NAMES)
def test_deploy_form_computes_the_same_and_is_idempotent(name):
    model = build(name).eval()
    x = images(70, 97)
    with torch.no_grad():
        want = model(x)
        deployed = model.switch_to_deploy()
        assert deployed is model and model.switch_to_deploy() is model
        for i, (got, expected) in enumerate(zip(model(x), want, strict=True)):
            assert_close(f'stage {i}', got, expected, 20 * OUTPUT)


@pytest.mark.parametrize('name', NAMES)
def test_state_dict_round_trip_and_deepcopy(name):
    model = build(name).eval()
    other = build(name).eval()
    other.load_state_dict(model.state_dict(), strict=True)
    clone = copy.deepcopy(model)
    with torch.no_grad():
        for a, b, c in zip(model(images()), other(images()), clone(images()), strict=True):
            assert torch.equal(a, b) and torch.equal(a, c)


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize(
    'state', [{}, {'conv1.weight': torch.zeros(64, 3, 7, 7)}], ids=['empty', 'foreign']
)
def test_loading_what_does_not_cover_the_trunk_raises(name, state):
    model = build(name)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises((ValueError, RuntimeError), match='(?i)missing|cover'):
        model.load_state_dict(dict(state), strict=False)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize('name', NAMES)
def test_every_parameter_has_a_location(name):
    model = build(name)
    kinds = {model.layer_location(key).kind for key, _ in model.named_parameters()}
    assert {'stem', 'downsample', 'block'} <= kinds
    with pytest.raises(ValueError, match='decode_head.weight'):
        model.layer_location('decode_head.weight')


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(arch='huge'), "'huge' is not one of"),
        (dict(arch=dict(depths=(1, 1, 1, 1))), r"lacks \['dims'\]"),
        (dict(arch=dict(depths=(1, 1), dims=(16, 24), widths=3)), r"unknown keys \['widths'\]"),
        (dict(out_indices=(0, 4)), r'out_indices \(0, 4\)'),
        (dict(out_indices=(2, 1)), r'out_indices \(2, 1\)'),
        (dict(out_indices=()), r'out_indices \(\)'),
        (dict(frozen_stages=7), 'frozen_stages 7'),
        (dict(drop_path_rate=1.5), '1.5'),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_arguments_are_named(name, options, message):
    with pytest.raises(ValueError, match=message):
        MODELS.build(dict(type=f'mmlk.{name}', **{'arch': MICRO_ARCHS[name], **options}))


@pytest.mark.parametrize('name', NAMES)
def test_bad_input_is_named(name):
    model = build(name).eval()
    with pytest.raises(ValueError, match=r'\(1, 4, 64, 64\) is not \(N, 3, H, W\)'):
        model(torch.zeros(1, 4, 64, 64))
    with pytest.raises(ValueError, match=r'\(64, 64\) is not'):
        model(torch.zeros(64, 64))
    smallest = model.min_input_size
    with pytest.raises(ValueError, match='smaller than'):
        model(torch.zeros(1, 3, smallest - 1, 64))
    model(torch.zeros(1, 3, smallest, 64))
