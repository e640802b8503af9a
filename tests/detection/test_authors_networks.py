"""Whole detectors against the authors': loading, heads, anchors, box coding, RoIAlign, masks."""

import pytest
import torch

from tests.golden_dense import AuthorsNetwork, deviations, levels, recorded_outputs, wrong
from tests.golden_weights import golden_input

SMALL = 'mask_rcnn_recnext_m3'
LARGE = [
    pytest.param(name, marks=pytest.mark.slow)
    for name in ('cascade_mask_rcnn_slak_tiny', 'cascade_mask_rcnn_dcls_convnext_tiny')
]
NAMES = [SMALL, *LARGE]


def run(detector, case, refine_labels):
    """Every recorded output of a case by its recorded name."""
    shape = tuple(case['input_shape'][2:])
    with torch.no_grad(), recorded_outputs(backbone=detector.backbone) as seen:
        maps = detector.extract_feat(golden_input(case['input_shape'], case['input_seed']))
        found = levels('backbone', seen['backbone']) | levels('neck', maps)
        found |= proposals(detector.rpn_head, maps, shape)
        rois = torch.tensor(case['rois'], dtype=torch.float32)
        rois = torch.cat([torch.zeros(len(rois), 1), rois], dim=1)
        if not isinstance(detector.roi_head.bbox_head, torch.nn.ModuleList):
            return found | regions(detector.roi_head, (), maps, rois, shape)
        labels, stages = torch.tensor(refine_labels), len(detector.roi_head.bbox_head)
        for stage in range(stages):
            part = regions(detector.roi_head, (stage,), maps, rois, shape)
            if stage < stages - 1:
                part['refined_rois'] = detector.roi_head.bbox_head[stage].regress_by_class(
                    rois[:, 1:], labels, part['bbox_pred'], dict(img_shape=shape)
                )
            found |= {f'stage{stage}.{name}': value for name, value in part.items()}
    return found


def proposals(head, maps, shape):
    """Scores, deltas and decoded anchors of every level."""
    scores, deltas = head(maps)
    anchors = head.prior_generator.grid_priors([y.shape[2:] for y in maps], device='cpu')
    decoded = [
        head.bbox_coder.decode(prior, delta[0].permute(1, 2, 0).reshape(-1, 4), max_shape=shape)
        for prior, delta in zip(anchors, deltas, strict=True)
    ]
    return levels('rpn_cls', scores) | levels('rpn_bbox', deltas) | levels('rpn_decoded', decoded)


def regions(roi_head, stage, maps, rois, shape):
    """What the heads of one stage (``()`` where there is one) make of the regions."""
    box_head = roi_head.bbox_head[stage[0]] if stage else roi_head.bbox_head
    found = roi_head._bbox_forward(*stage, maps, rois)
    boxes = box_head._predict_by_feat_single(
        rois, found['cls_score'], found['bbox_pred'], dict(img_shape=shape), rescale=False
    )
    masks = roi_head._mask_forward(*stage, maps, rois)['mask_preds']
    return dict(found, decoded_boxes=boxes.bboxes, scores=boxes.scores, mask_pred=masks)


@pytest.fixture(scope='module', params=NAMES)
def network(request, tmp_path_factory):
    if request.param == SMALL:
        return request.getfixturevalue('small')
    published = AuthorsNetwork(request.param)
    return published, published.load(tmp_path_factory.mktemp('authors'))


@pytest.fixture(scope='module')
def small(tmp_path_factory):
    published = AuthorsNetwork(SMALL)
    return published, published.load(tmp_path_factory.mktemp('small'))


def deviations_of(published, detector, index=0):
    case = published.golden['cases'][index]
    return deviations(run(detector, case, published.golden['refine_labels']), case['outputs'])


def test_the_checkpoint_holds_the_tensors_and_settings_of_our_model(network):
    published, detector = network
    assert {key for key, _, _ in published.golden['state_dict']} == set(detector.state_dict())
    assert sum(p.numel() for p in detector.parameters()) == published.golden['parameters']
    stated, ours = published.golden['test_cfg'], detector.test_cfg.to_dict()
    for name in ('nms_across_levels', 'nms_post'):  # MMDetection 2.28 no longer read these
        stated['rpn'].pop(name, None)
    assert ours == stated


@pytest.mark.parametrize('index', range(2), ids=['plain', 'odd'])
def test_outputs_are_the_authors(network, index):
    assert wrong(deviations_of(*network, index)) == {}


@pytest.mark.parametrize('index', range(2), ids=['plain', 'odd'])
def test_regions_are_read_from_the_levels_of_the_authors(network, index):
    published, detector = network
    extractor = detector.roi_head.bbox_roi_extractor
    extractor = extractor[0] if isinstance(extractor, torch.nn.ModuleList) else extractor
    case = published.golden['cases'][index]
    rois = torch.tensor([[0, *roi] for roi in case['rois']])
    assert extractor.map_roi_levels(rois, 4).tolist() == case['roi_levels']


@pytest.mark.parametrize(
    ('key', 'shows'),
    [
        ('neck.fpn_convs.2.conv.weight', 'bbox_feats'),
        ('rpn_head.rpn_reg.weight', 'rpn_decoded.0'),
        ('roi_head.bbox_head.fc_reg.weight', 'decoded_boxes'),
        ('roi_head.mask_head.convs.1.conv.weight', 'mask_pred'),
    ],
)
def test_a_weight_off_by_a_hundredth_shows(small, key, shows):
    published, detector = small
    weight = detector.state_dict()[key]
    before = weight.clone()
    try:
        weight *= 1.01
        found = wrong(deviations_of(published, detector))
    finally:
        weight.copy_(before)
    assert shows in found


def test_swapped_levels_of_the_neck_show(small):
    published, detector = small
    first, second = detector.neck.fpn_convs[:2]
    try:
        detector.neck.fpn_convs[0], detector.neck.fpn_convs[1] = second, first
        found = wrong(deviations_of(published, detector))
    finally:
        detector.neck.fpn_convs[0], detector.neck.fpn_convs[1] = first, second
    assert {'neck.0', 'neck.1', 'rpn_cls.0', 'bbox_feats', 'mask_pred'} <= set(found)


def test_a_head_key_that_is_missing_is_named(small):
    key, detector = 'roi_head.bbox_head.fc_cls.weight', small[1]
    state = detector.state_dict()
    del state[key]
    with pytest.raises(RuntimeError, match=f"lacks 1 of the model's tensors, first {key}"):
        detector.load_state_dict(state, strict=False)
