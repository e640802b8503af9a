"""Whole segmentors against the authors': loading, heads, windows, resizing, label maps."""

import pytest
import torch
from mmseg.structures import SegDataSample

from tests.golden_dense import (
    AuthorsNetwork,
    deviations,
    levels,
    recorded_outputs,
    with_index,
    wrong,
)
from tests.golden_weights import golden_input, sampled

SMALL = 'fpn_recnext_m3'
LARGE = [
    pytest.param(name, marks=pytest.mark.slow)
    for name in ('upernet_slak_tiny', 'upernet_dcls_convnext_tiny')
]
NAMES = [SMALL, 'fpn_recnext_a3', *LARGE]
TIE = 1e-3  # margin of the largest logit below which a label is not compared
cases = pytest.mark.parametrize('index', range(4), ids=['plain', 'odd', 'padded', 'wide'])


def run(segmentor, case):
    """Every recorded output of a case by its recorded name, the label map at the original size."""
    (height, width), content = case['input_shape'][2:], case['img_shape']
    sample = SegDataSample(
        metainfo=dict(
            img_shape=(height, width),
            pad_shape=(height, width),
            ori_shape=tuple(case['ori_shape']),
            img_padding_size=[0, width - content[1], 0, height - content[0]],
        )
    )
    modules = dict(backbone=segmentor.backbone, decode_head=segmentor.decode_head)
    if segmentor.with_neck:
        modules['neck'] = segmentor.neck
    image = golden_input(case['input_shape'], case['input_seed'])
    with torch.no_grad(), recorded_outputs(**modules) as seen:
        result = segmentor.predict(image, [sample])[0]
        found = dict(seg_logits=result.seg_logits.data[None], label_map=result.pred_sem_seg.data[0])
        if 'decode_head' in case['outputs']:
            found |= levels('backbone', seen['backbone']) | levels('neck', seen.get('neck', ()))
            found['decode_head'] = seen['decode_head']
            if segmentor.with_auxiliary_head:
                found['auxiliary_head'] = segmentor.auxiliary_head(seen['backbone'])
    return found


def deviations_of(found, case):
    """Those of every output but the label map."""
    found, recorded = dict(found), dict(case['outputs'])
    del found['label_map'], recorded['label_map']
    return deviations(found, recorded)


@pytest.fixture(scope='module', params=NAMES)
def network(request, tmp_path_factory):
    """The recorded network, ours with its weights, and what ours computes in each case."""
    if request.param == SMALL:
        published, segmentor = request.getfixturevalue('small')
    else:
        published = AuthorsNetwork(request.param)
        segmentor = published.load(tmp_path_factory.mktemp('authors'))
    return published, segmentor, [run(segmentor, case) for case in published.golden['cases']]


@pytest.fixture(scope='module')
def small(tmp_path_factory):
    published = AuthorsNetwork(SMALL)
    return published, published.load(tmp_path_factory.mktemp('small'))


def test_the_checkpoint_holds_the_tensors_and_settings_of_our_model(network):
    published, segmentor, _ = network
    assert {key for key, _, _ in published.golden['state_dict']} == set(segmentor.state_dict())
    assert sum(p.numel() for p in segmentor.parameters()) == published.golden['parameters']
    stated, ours = published.golden['test_cfg'], segmentor.test_cfg
    assert {key: list(ours[key]) if key != 'mode' else ours[key] for key in stated} == stated


@cases
def test_outputs_are_the_authors(network, index):
    published, _, found = network
    assert wrong(deviations_of(found[index], published.golden['cases'][index])) == {}


@cases
def test_labels_are_the_authors_but_for_ties(network, index):
    published, _, found = network
    summary = published.golden['cases'][index]['outputs']['label_map']
    got, want = sampled(found[index]['label_map'], with_index(summary))
    clear = torch.tensor(summary['margin']) > TIE
    assert clear.sum() > 150 and torch.equal(got[clear], want[clear])
    assert len(found[index]['label_map'].unique()) == pytest.approx(summary['distinct'], abs=1)


@pytest.mark.parametrize(
    'key',
    [
        'backbone.stages.2.blocks.3.channel_mixer.0.conv.weight',
        'neck.lateral_convs.1.conv.weight',
        'decode_head.scale_heads.2.0.conv.weight',
    ],
)
def test_a_weight_off_by_a_hundredth_shows(small, key):
    published, segmentor = small
    weight, case = segmentor.state_dict()[key], published.golden['cases'][0]
    before = weight.clone()
    try:
        weight *= 1.01
        found = wrong(deviations_of(run(segmentor, case), case))
    finally:
        weight.copy_(before)
    assert 'seg_logits' in found


def test_swapped_levels_of_the_neck_show(small):
    published, segmentor = small
    case, (first, second) = published.golden['cases'][0], segmentor.neck.fpn_convs[:2]
    try:
        segmentor.neck.fpn_convs[0], segmentor.neck.fpn_convs[1] = second, first
        found = wrong(deviations_of(run(segmentor, case), case))
    finally:
        segmentor.neck.fpn_convs[0], segmentor.neck.fpn_convs[1] = first, second
    assert {'neck.0', 'neck.1', 'decode_head', 'seg_logits'} <= set(found)


def test_a_head_key_that_is_missing_is_named(small):
    key, segmentor = 'decode_head.conv_seg.weight', small[1]
    state = segmentor.state_dict()
    del state[key]
    with pytest.raises(RuntimeError, match=f"lacks 1 of the model's tensors, first {key}"):
        segmentor.load_state_dict(state, strict=False)
