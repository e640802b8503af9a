"""Loading into a module: values arrive, sharing survives, and a failure touches nothing."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from torch import nn

from mmlk.checkpoints.load import convert_in_place, load_into
from tests.checkpoints.cases import NETWORKS, Holder, filled, headless

MICRO = ['inceptionnext/atto', 'slak/slak_micro', 'recnext/recnext_m0', 'dcls_convnext/tiny']


def blank(state: dict) -> Holder:
    """A module with the keys of ``state`` and other values."""
    return Holder({key: torch.full_like(value, 3) for key, value in state.items()})


def shared_stages(network: str = 'dcls_convnext/tiny', value: float = 0.0) -> dict:
    """Backbone state in which the positions of a stage are one parameter."""
    state, shared = headless(filled(network), network), {}
    for key in state:
        if key.endswith('.P'):
            parameter = nn.Parameter(torch.full_like(state[key], value))
            state[key] = shared.setdefault(key.split('.')[1], parameter)
    return state


def published_positions(scale: float = 1.0) -> dict:
    """The recorded classifier with equal positions in all blocks of a stage."""
    state = filled('dcls_convnext/tiny')
    first = {str(i): state[f'stages.{i}.0.dwconv.P'] for i in range(4)}
    for key in state:
        if key.endswith('.P'):
            stage = key.split('.')[1]
            state[key] = scale * first[stage]
    return state


def position_keys(stage: int, blocks: int) -> list[str]:
    return [f'stages.{stage}.{block}.dwconv.P' for block in range(blocks)]


@pytest.mark.parametrize('network', MICRO[:3])
@pytest.mark.parametrize(
    'prefix,wrapper', [('', ''), ('', 'module.'), ('backbone.', ''), ('backbone.', 'module.')]
)
def test_values_arrive(tmp_path, caplog, network, prefix, wrapper):
    published = filled(network)
    torch.save(
        {'model': {wrapper + prefix + key: value for key, value in published.items()}},
        tmp_path / 'a.pth',
    )
    own = headless(published, network)
    module = blank(own)
    with caplog.at_level(logging.INFO, logger='mmlk'):
        report = load_into(module, NETWORKS[network][0], tmp_path / 'a.pth', prefix=prefix)
    assert len(report.matched) == len(own)
    for key, value in module.state_dict().items():
        assert torch.equal(value, own[key]), key
    said = caplog.text
    assert f'{len(own)} of {len(own)} keys matched, 0 missing, 0 unexpected' in said
    assert str(tmp_path / 'a.pth') in said


@pytest.mark.parametrize('network', MICRO[:3])
def test_a_failure_touches_nothing(tmp_path, network):
    family, published = NETWORKS[network][0], filled(network)
    own = headless(published, network)
    last = next(key for key in reversed(own) if key.endswith('weight'))
    wrong = {
        'shape': {**published, last: torch.zeros(1, 2, 3)},
        'missing': {key: value for key, value in published.items() if key != last},
        'nan': {**published, last: torch.full_like(published[last], float('nan'))},
        'extra': {**published, last.replace('stages.3', 'stages.9'): torch.zeros(1)},
    }
    module = blank(own)
    before = copy.deepcopy(module.state_dict())
    for name, state in wrong.items():
        torch.save(state, tmp_path / f'{name}.pth')
        with pytest.raises(ValueError, match=f'{name}.pth does not cover the backbone'):
            load_into(module, family, tmp_path / f'{name}.pth')
    for key, value in module.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_prefix_that_matches_nothing_names_what_is_there(tmp_path):
    torch.save(filled('slak/slak_micro'), tmp_path / 'a.pth')
    module = blank(headless(filled('slak/slak_micro'), 'slak/slak_micro'))
    with pytest.raises(ValueError, match="starts with 'backbone.'.*downsample_layers, head, norm"):
        load_into(module, 'slak', tmp_path / 'a.pth', prefix='backbone.')


def test_half_precision_file_is_widened(tmp_path):
    own = headless(filled('recnext/recnext_m0'), 'recnext/recnext_m0')
    torch.save(
        {key: value.half() if value.is_floating_point() else value for key, value in own.items()},
        tmp_path / 'a.pth',
    )
    module = blank(own)
    load_into(module, 'recnext', tmp_path / 'a.pth')
    for key, value in module.state_dict().items():
        assert value.dtype == own[key].dtype
        torch.testing.assert_close(value, own[key], rtol=2**-10, atol=1e-6)


def hooked(family: str, state: dict) -> Holder:
    """A module that converts what is loaded into it, as the backbones do."""
    module = Holder(state)

    def convert(module, state_dict, prefix, *_):
        convert_in_place(family, state_dict, prefix, module.state_dict()).raise_if_uncovered()

    module._register_load_state_dict_pre_hook(convert, with_module=True)
    return module


@pytest.mark.parametrize('assign', [False, True])
@pytest.mark.parametrize('network', MICRO[:3])
def test_hook_converts_a_foreign_dict_of_a_whole_model(network, assign):
    published = filled(network)
    own = headless(published, network)
    model = nn.Module()
    model.backbone = hooked(NETWORKS[network][0], {k: v.clone() + 1 for k, v in own.items()})
    model.head = nn.Linear(2, 2)
    head = {f'head.{key}': value for key, value in model.head.state_dict().items()}
    given = {**{f'backbone.{key}': value for key, value in published.items()}, **head}
    keys = list(given)
    model.load_state_dict(given, strict=True, assign=assign)
    assert list(given) == keys  # the caller's dict is the caller's
    for key, value in model.backbone.state_dict().items():
        assert torch.equal(value, own[key]), key


def test_own_dict_passes_unchanged_with_its_metadata():
    own = headless(filled('recnext/recnext_m0'), 'recnext/recnext_m0')
    module = hooked('recnext', own)
    state = module.state_dict()
    values, metadata = dict(state), state._metadata
    report = convert_in_place('recnext', state, '', module.state_dict())
    assert state._metadata is metadata and list(state) == list(values)
    assert all(state[key] is value for key, value in values.items())
    assert not (report.dropped or report.notes)


def test_uncovered_dict_is_left_as_it_came():
    own = headless(filled('slak/slak_micro'), 'slak/slak_micro')
    state = {'backbone.' + key: value for key, value in filled('inceptionnext/atto').items()}
    before = dict(state)
    report = convert_in_place('slak', state, 'backbone.', own)
    assert not report.covered and state == before and list(state) == list(before)


def test_keys_outside_the_prefix_are_kept():
    own = headless(filled('slak/slak_micro'), 'slak/slak_micro')
    state = {
        **{f'net.{k}': v for k, v in filled('slak/slak_micro').items()},
        'norm.weight': torch.ones(1),
        'netnorm.weight': torch.ones(1),
    }
    convert_in_place('slak', state, 'net.', own).raise_if_uncovered()
    assert set(state) == {f'net.{key}' for key in own} | {'norm.weight', 'netnorm.weight'}


@pytest.mark.parametrize('assign', [False, True])
def test_dcls_positions_stay_one_tensor_per_stage(assign):
    module = hooked('dcls_convnext', shared_stages())
    module.load_state_dict(published_positions(), strict=True, assign=assign)
    published = published_positions()
    parameters = dict(module.named_parameters(remove_duplicate=False))
    for stage, blocks in enumerate((3, 3, 9, 3)):
        keys = position_keys(stage, blocks)
        assert len({id(parameters[key]) for key in keys}) == 1
        assert torch.equal(parameters[keys[-1]], published[keys[0]])
    assert len(list(module.parameters())) == 4


def test_dcls_own_dict_keeps_sharing_under_assign():
    source = Holder(shared_stages(value=2.0))
    module = hooked('dcls_convnext', shared_stages())
    module.load_state_dict(source.state_dict(), strict=True, assign=True)
    assert len(list(module.parameters())) == 4
    assert all(torch.all(parameter == 2.0) for parameter in module.parameters())


def test_dcls_unequal_positions_are_refused_only_where_they_are_shared():
    per_block = filled('dcls_convnext/tiny')
    with pytest.raises(ValueError, match='stages.0.1.dwconv.P differs.*without sharing'):
        hooked('dcls_convnext', shared_stages()).load_state_dict(per_block)
    own = headless(per_block, 'dcls_convnext/tiny')
    module = hooked('dcls_convnext', {k: torch.zeros_like(v) for k, v in own.items()})
    module.load_state_dict(per_block)
    assert torch.equal(module.state_dict()['stages.0.1.dwconv.P'], own['stages.0.1.dwconv.P'])


def test_dcls_positions_are_clamped_to_the_window_and_said(tmp_path):
    published = published_positions(scale=2.0)
    torch.save({'model': published}, tmp_path / 'a.pth')
    module = Holder(shared_stages())
    module.checkpoint_options = {'window': 17}
    report = load_into(module, 'dcls_convnext', tmp_path / 'a.pth')
    for stage, blocks in enumerate((3, 3, 9, 3)):
        key = position_keys(stage, blocks)[-1]
        outside = int((published[key].abs() > 8).sum())
        assert outside > 0
        assert torch.equal(module.state_dict()[key], published[key].clamp(-8, 8))
        assert f'stages.{stage}.0.dwconv.P: {outside} of ' in report.summary()
    assert len(list(module.parameters())) == 4


def test_dcls_positions_inside_the_window_are_not_touched(tmp_path):
    torch.save(published_positions(), tmp_path / 'a.pth')
    module = Holder(shared_stages())
    module.checkpoint_options = {'window': 17}
    report = load_into(module, 'dcls_convnext', tmp_path / 'a.pth')
    assert not any('clamped' in note for note in report.notes)


def test_meta_module_can_be_compared():
    own = headless(filled('slak/slak_micro'), 'slak/slak_micro')
    report = convert_in_place(
        'slak', filled('slak/slak_micro'), '', {key: value.to('meta') for key, value in own.items()}
    )
    assert report.covered and len(report.matched) == len(own)
