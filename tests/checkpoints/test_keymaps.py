"""Key names and shapes of every published form, against the authors' recorded key lists."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from mmlk.checkpoints import keymaps
from mmlk.checkpoints.load import plan
from tests.checkpoints.cases import NETWORKS, classifier, headless, output_norms

NAMES = list(NETWORKS)
MICRO = [
    'inceptionnext/atto',
    'slak/slak_micro',
    'dcls_convnext/tiny',
    'recnext/recnext_m0',
    'replknet/micro',
    'unireplknet/micro',
]


def shapes(state: dict) -> dict:
    return {key: tuple(value.shape) for key, value in state.items()}


def flattened(state: dict) -> dict:
    """timm's features_only form: the first two levels of names joined."""
    return {key.replace('.', '_', 1): value for key, value in state.items()}


def under(prefix: str, state: dict) -> dict:
    return {prefix + key: value for key, value in state.items()}


@pytest.mark.parametrize('network', NAMES)
def test_classifier_covers_its_backbone(network):
    family, _ = NETWORKS[network]
    published = classifier(network)
    own = headless(published, network)
    report = plan(family, published, own).raise_if_uncovered()
    assert set(report.matched) == set(own)
    assert len(report.dropped) == len(published) - len(own) > 0
    assert not report.unexpected and not report.fresh and not report.notes


@pytest.mark.parametrize('wrapper', ['module.', 'module._orig_mod.', 'model.', 'encoder.', 'a.b.'])
@pytest.mark.parametrize('network', NAMES)
def test_wrapped_classifier_covers_a_backbone_with_output_norms(network, wrapper):
    family, _ = NETWORKS[network]
    published = classifier(network)
    trunk = headless(published, network)
    report = plan(family, under(wrapper, published), {**trunk, **output_norms()})
    report.raise_if_uncovered()
    assert set(report.matched) == set(trunk)
    assert report.fresh == list(output_norms())
    assert all(part in ' '.join(report.notes) for part in wrapper.split('.'))


@pytest.mark.parametrize('network', NAMES)
def test_dense_checkpoint_covers_under_its_prefix(network):
    family, _ = NETWORKS[network]
    own = {**headless(classifier(network), network), **output_norms()}
    whole = {**under('backbone.', own), 'decode_head.conv_seg.weight': torch.empty(1)}
    report = plan(family, whole, own, prefix='backbone.').raise_if_uncovered()
    assert set(report.matched) == set(own) and not report.dropped and not report.unexpected


@pytest.mark.parametrize('network', NAMES)
def test_backbone_of_a_dense_checkpoint_is_found_and_said(network):
    family, _ = NETWORKS[network]
    own = headless(classifier(network), network)
    whole = {**under('backbone.', own), 'decode_head.conv_seg.weight': torch.empty(1)}
    report = plan(family, whole, own).raise_if_uncovered()
    assert set(report.matched) == set(own) and not report.dropped and not report.unexpected
    assert report.notes == ["prefix 'backbone.' removed", '1 keys of other parts left: decode_head']


@pytest.mark.parametrize('network', MICRO)
def test_two_networks_in_one_file_need_a_prefix(network):
    family, _ = NETWORKS[network]
    own = headless(classifier(network), network)
    both = {**under('student.', own), **under('teacher.', own)}
    with pytest.raises(ValueError, match="2 such networks .*student., teacher.: pass prefix='stud"):
        plan(family, both, own).raise_if_uncovered()
    plan(family, both, own, prefix='teacher.').raise_if_uncovered()


@pytest.mark.parametrize('network', NAMES)
def test_own_keys_pass_silently(network):
    family, _ = NETWORKS[network]
    own = {**headless(classifier(network), network), **output_norms()}
    report = plan(family, own, own).raise_if_uncovered()
    assert list(report.matched.items()) == [(key, key) for key in own]
    assert not (report.dropped or report.notes or report.fresh or report.unexpected)


@pytest.mark.parametrize('network', [name for name in NAMES if name.startswith('inceptionnext')])
def test_features_only_form(network):
    own = headless(classifier(network), network)
    report = plan('inceptionnext', flattened(own), own).raise_if_uncovered()
    assert set(report.matched) == set(own)
    assert f'{len(own)} keys renamed' in report.notes[0]


@pytest.mark.parametrize('network', NAMES)
def test_variant_is_recognised(network):
    family, arch = NETWORKS[network]
    for state in (classifier(network), under('module.backbone.', classifier(network))):
        found = keymaps.describe(shapes(state))
        assert (found.family, found.arch) == (family, arch)


@pytest.mark.parametrize('file,module', [*pairwise(NAMES), *((b, a) for a, b in pairwise(NAMES))])
def test_another_network_is_refused_and_named(file, module):
    report = plan(NETWORKS[module][0], classifier(file), headless(classifier(module), module))
    with pytest.raises(ValueError, match='does not cover') as caught:
        report.raise_if_uncovered()
    assert keymaps.describe(shapes(classifier(file))).text in str(caught.value)


def test_deeper_variant_of_the_same_width_is_refused():
    published = classifier('inceptionnext/tiny')
    deeper = {
        **published,
        **{
            key.replace('stages.2.blocks.8.', f'stages.2.blocks.{i}.'): value
            for i in range(9, 27)
            for key, value in published.items()
            if key.startswith('stages.2.blocks.8.')
        },
    }
    report = plan('inceptionnext', deeper, headless(published, 'inceptionnext/tiny'))
    assert not report.missing and not report.mismatched
    with pytest.raises(ValueError, match="InceptionNeXt small.*arch='small'"):
        report.raise_if_uncovered()


@pytest.mark.parametrize(
    'key,name',
    [
        ('layer1.0.conv1.weight', 'ResNet'),
        ('layers.0.blocks.0.attn.relative_position_bias_table', 'Swin Transformer'),
        ('stages.0.0.dwconv.weight', 'ConvNeXt'),
        ('backbone.cls_token', 'a vision transformer'),
        ('whatever.weight', 'an unknown network'),
    ],
)
@pytest.mark.parametrize('network', MICRO)
def test_stranger_is_refused_and_named(network, key, name):
    own = headless(classifier(network), network)
    report = plan(NETWORKS[network][0], {key: torch.empty(3, 3)}, own)
    with pytest.raises(ValueError, match=f'looks like {name}'):
        report.raise_if_uncovered()


@pytest.mark.parametrize('network', MICRO)
def test_empty_and_incomplete_files_are_refused(network):
    family, own = NETWORKS[network][0], headless(classifier(network), network)
    with pytest.raises(ValueError, match='0 of .* keys match'):
        plan(family, {}, own).raise_if_uncovered()
    lost = next(key for key in reversed(own) if key.endswith('weight'))
    rest = {key: value for key, value in own.items() if key != lost}
    with pytest.raises(ValueError, match=f'1 missing: {lost}'):
        plan(family, rest, own).raise_if_uncovered()


def test_counters_may_be_absent():
    own = headless(classifier('recnext/recnext_m0'), 'recnext/recnext_m0')
    bare = {key: value for key, value in own.items() if 'num_batches_tracked' not in key}
    report = plan('recnext', bare, own).raise_if_uncovered()
    assert len(report.fresh) == len(own) - len(bare) > 0


def test_unknown_keys_outside_the_trunk_are_reported_not_fatal():
    own = headless(classifier('slak/slak_micro'), 'slak/slak_micro')
    report = plan('slak', {**own, 'aux.weight': torch.empty(1)}, own).raise_if_uncovered()
    assert report.unexpected == ['aux.weight']
    assert '1 unexpected' in report.summary() and 'aux.weight' in report.summary()


def test_output_norms_of_a_dense_file_may_be_surplus():
    own = headless(classifier('slak/slak_micro'), 'slak/slak_micro')
    report = plan('slak', {**own, **output_norms()}, own).raise_if_uncovered()
    assert report.dropped == list(output_norms())


def test_slak_historic_names_of_the_strips():
    own = headless(classifier('slak/slak_micro'), 'slak/slak_micro')
    old = {key.replace('.LoRA', '.Decom'): value for key, value in own.items()}
    assert old.keys() != own.keys()
    report = plan('slak', old, own).raise_if_uncovered()
    assert set(report.matched) == set(own) and 'renamed' in report.notes[0]


def test_slak_kernel_sizes_are_inferred_and_compared():
    file, own = classifier('slak/slak_tiny_k31'), classifier('slak/slak_tiny')
    with pytest.raises(ValueError, match="31, 29, 27, 13 .*51, 49, 47, 13 .*arch='tiny_31'"):
        plan('slak', file, headless(own, 'slak/slak_tiny')).raise_if_uncovered()


def test_slak_file_that_is_not_decomposed_is_called_the_wrong_model():
    own = headless(classifier('slak/slak_micro'), 'slak/slak_micro')
    with pytest.raises(ValueError, match='lkb_origin.*wrong, non-decomposed model'):
        plan('slak', classifier('slak/slak_micro_nodecom'), own).raise_if_uncovered()
    with pytest.raises(ValueError, match='7, 7, 7, 7.*wrong, non-decomposed model'):
        plan('slak', classifier('slak/slak_tiny_k7'), own).raise_if_uncovered()


def test_dcls_index_buffers_are_dropped():
    own = headless(classifier('dcls_convnext/tiny'), 'dcls_convnext/tiny')
    index = {
        f'stages.0.{i}.dwconv.DCK.{name}': torch.empty(2)
        for i in range(3)
        for name in ('I', 'J', 'lim')
    }
    report = plan('dcls_convnext', {**own, **index}, own).raise_if_uncovered()
    assert report.dropped == list(index)


@pytest.mark.parametrize('channels', [1, 4, 12])
@pytest.mark.parametrize('network', MICRO)
def test_image_channels_are_named_when_only_they_differ(network, channels):
    own = {**output_norms(), **headless(classifier(network), network)}  # in a module's order
    stem = keymaps.stem_key(shapes(own))
    outputs, _, *edges = own[stem].shape
    own[stem] = torch.empty(outputs, channels, *edges, device='meta')
    with pytest.raises(ValueError, match=f'takes 3 channels, the module {channels}') as caught:
        plan(NETWORKS[network][0], classifier(network), own).raise_if_uncovered()
    said = str(caught.value)
    assert "adapt_stem='repeat'" in said and 'in_channels=3' in said
    assert ("'sum'" in said) == (channels == 1)


@pytest.mark.parametrize('network', MICRO)
def test_any_one_key_that_is_missing_or_misshapen_is_named(network):
    """The first keys, which hold the stem, and a sample of the others."""
    family = NETWORKS[network][0]
    own = {**output_norms(), **headless(classifier(network), network)}
    trunk = headless(classifier(network), network)
    keys = [key for key in trunk if not keymaps.is_counter(key)]
    for key in [*keys[:6], *keys[6::41]]:
        without = {name: value for name, value in trunk.items() if name != key}
        with pytest.raises(ValueError, match='does not cover') as caught:
            plan(family, without, own).raise_if_uncovered()
        assert key in str(caught.value)
        other = torch.empty((*trunk[key].shape, 2), device='meta')
        with pytest.raises(ValueError, match='1 of another shape') as caught:
            plan(family, {**trunk, key: other}, own).raise_if_uncovered()
        assert key in str(caught.value)


def test_folded_file_is_refused():
    own = headless(classifier('inceptionnext/atto'), 'inceptionnext/atto')
    folded = {
        key: value
        for key, value in own.items()
        if '.norm.' not in key and not key.endswith('gamma')
    }
    with pytest.raises(ValueError, match='incomplete or altered'):
        plan('inceptionnext', folded, own).raise_if_uncovered()
    with pytest.raises(ValueError, match='load before folding'):
        plan('inceptionnext', own, {'conv.weight': torch.empty(1)}).raise_if_uncovered()


def test_unknown_family_lists_the_choices():
    with pytest.raises(ValueError, match='family_of.*resnet.*inceptionnext, slak'):
        plan('resnet', {}, {})
