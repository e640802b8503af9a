"""MMCV's operators: torchvision's in their place, and compiled ones, against NumPy and each other."""

import importlib
import itertools
import sys
from importlib.machinery import PathFinder

import mmcv.ops
import numpy as np
import pytest
import torch

from mmlk.mmcv_ops import extension
from tests.cases import TOLERANCE, assert_close
from tests.detection import closed_forms
from tests.detection.detectors import batch, build, small_config

NO_COMPILED = PathFinder.find_spec('mmcv._ext', mmcv.__path__) is None
NEEDS_COMPILED = pytest.mark.skipif(
    NO_COMPILED, reason='this mmcv has no compiled operators; make setup-ops compiles them'
)
SOURCES = ['torchvision', pytest.param('compiled', marks=NEEDS_COMPILED)]


@pytest.fixture
def use(monkeypatch):
    """Lets mmcv.ops compute with the operators of one source."""

    def use(source):
        if source == 'compiled':
            monkeypatch.delenv('MMLK_MMCV_OPS', raising=False)
            found = importlib.import_module('mmcv._ext')
            assert found.__file__ != extension.__file__
        else:
            found = extension
        # By the table of modules, since functions of the same names hide them in the package.
        for name in ('nms', 'roi_align'):
            monkeypatch.setattr(sys.modules[f'mmcv.ops.{name}'], 'ext_module', found)

    return use


@pytest.fixture(params=SOURCES)
def source(request, use):
    use(request.param)
    return request.param


def boxes_and_scores(kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes in pixels of one kind, and their scores."""
    drawn = np.random.RandomState(0)
    count = dict(empty=0, one=1, many=150).get(kind, 60)
    corner = drawn.uniform(-20, 300, (count, 2))
    size = drawn.uniform(1, 90, (count, 2))
    scores = drawn.uniform(0, 1, count)
    if kind == 'degenerate':
        size[::3] = 0
        size[1::3, 0] = 0
        corner[::5] = corner[0] if count else 0
    if kind == 'huge':
        corner, size = corner * 1e3, size * 1e3
    if kind == 'equal scores':
        scores = drawn.randint(0, 4, count) / 4
    if kind == 'whole pixels':
        corner, size = corner.round(), size.round()
    boxes = np.concatenate([corner, corner + size], axis=1)
    return tuple(torch.from_numpy(x.astype(np.float32)) for x in (boxes, scores))


def kept_by_definition(boxes, scores, threshold, offset=0) -> list[int]:
    """Equal scores come in the order of torch's sort, which MMCV asks and which is not stable."""
    order = scores.sort(descending=True)[1]
    return closed_forms.nms(boxes.numpy(), order.numpy(), threshold, offset)


KINDS = ['empty', 'one', 'many', 'degenerate', 'huge', 'equal scores', 'whole pixels']


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('threshold', [0.0, 0.1, 0.3, 0.5, 0.7, 1.0])
@pytest.mark.parametrize('kind', KINDS)
def test_nms_keeps_what_its_definition_keeps(source, kind, threshold, offset):
    boxes, scores = boxes_and_scores(kind)
    detections, kept = mmcv.ops.nms(boxes, scores, threshold, offset=offset)
    assert kept.tolist() == kept_by_definition(boxes, scores, threshold, offset)
    assert kept.dtype == torch.int64
    assert torch.equal(detections, torch.cat([boxes, scores[:, None]], dim=1)[kept])


def test_an_overlap_equal_to_the_threshold_is_kept(source):
    # 10 / 100 pixels: 0.1 in float32 is above 0.1 in float64.
    boxes = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 1]], dtype=torch.float32)
    scores = torch.tensor([0.9, 0.8])
    for threshold in (0.1, np.float32(0.1), torch.tensor(0.1)):
        assert mmcv.ops.nms(boxes, scores, threshold)[1].tolist() == [0, 1]
    assert mmcv.ops.nms(boxes, scores, 0.0999)[1].tolist() == [0]
    assert mmcv.ops.nms(boxes, scores, 1)[1].tolist() == [0, 1]
    assert mmcv.ops.nms(boxes, scores, 0)[1].tolist() == [0]


def test_nms_drops_low_scores_and_all_beyond_the_number(source):
    boxes, scores = boxes_and_scores('many')
    whole = kept_by_definition(boxes, scores, 0.5)
    kept = mmcv.ops.nms(boxes, scores, 0.5, score_threshold=0.4, max_num=10)[1]
    assert kept.tolist() == [i for i in whole if scores[i] > 0.4][:10]
    as_arrays = mmcv.ops.nms(boxes.numpy(), scores.numpy(), 0.5, score_threshold=0.4, max_num=10)
    assert isinstance(as_arrays[1], np.ndarray) and as_arrays[1].tolist() == kept.tolist()


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('method', ['naive', 'linear', 'gaussian'])
@pytest.mark.parametrize('kind', KINDS)
def test_soft_nms_lowers_scores_and_keeps_the_order(source, kind, method, offset):
    boxes, scores = (x[:120] for x in boxes_and_scores(kind))
    options = dict(sigma=0.5, min_score=0.05, method=method, offset=offset)
    detections, kept = mmcv.ops.soft_nms(boxes, scores, 0.3, **options)
    lowered, order = closed_forms.soft_nms(boxes.numpy(), scores.numpy(), threshold=0.3, **options)
    assert kept.tolist() == order
    assert torch.equal(detections[:, :4], boxes[order])
    torch.testing.assert_close(
        detections[:, 4], torch.from_numpy(lowered).float(), rtol=1e-5, atol=0, equal_nan=True
    )


@pytest.mark.parametrize('split', [10_000, 10])
@pytest.mark.parametrize('kind', ['one', 'whole pixels'])
def test_batched_nms_parts_the_classes(source, kind, split):
    boxes, scores = boxes_and_scores(kind)
    classes = torch.arange(len(boxes)) % 3
    kept = []
    for each in range(3):
        members = (classes == each).nonzero()[:, 0]
        part = kept_by_definition(boxes[members], scores[members], 0.4)
        kept += members[part].tolist()
    kept.sort(key=lambda i: -scores[i].item())
    settings = dict(type='nms', iou_threshold=0.4, split_thr=split)
    detections, found = mmcv.ops.batched_nms(boxes, scores, classes, settings)
    assert found.tolist() == kept
    assert torch.equal(detections[:, :4], boxes[kept])
    found = mmcv.ops.batched_nms(boxes, scores, classes, settings, class_agnostic=True)[1]
    if split > len(boxes):
        assert found.tolist() == kept_by_definition(boxes, scores, 0.4)
    found = mmcv.ops.batched_nms(boxes, scores, classes, dict(settings, max_num=5))[1]
    assert found.tolist() == kept[:5]


def test_batched_nms_of_nothing(source):
    boxes, scores = boxes_and_scores('empty')
    for kind in ('nms', 'soft_nms'):
        settings = dict(type=kind, iou_threshold=0.5, class_agnostic=True)
        detections, kept = mmcv.ops.batched_nms(boxes, scores, scores.long(), settings)
        assert detections.shape == (0, 5) and kept.shape == (0,)


ROIS = {
    'empty': np.zeros((0, 5)),
    'inside': [[0, 3.3, 4.1, 60.7, 40.2], [1, 10, 10, 90.5, 90.5], [1, 0, 0, 7.9, 21.3]],
    'degenerate': [[0, 8, 8, 8, 8], [1, 5.5, 9.25, 30, 9.25], [0, 12, 3, 12, 60.1]],
    'over the border': [[0, -30.3, -20.2, 25, 30], [1, 70, 60, 400, 300], [1, -50, -50, 500, 500]],
    'outside': [[0, -90, -90, -60, -50], [1, 900, 10, 950, 30]],
    'tiny': [[0, 30.1, 30.2, 30.15, 30.3], [1, 64, 64, 64.5, 66]],
}
MAPS = {'map': (2, 3, 17, 23), 'pixel': (2, 1, 1, 1), 'row': (2, 2, 1, 9), 'column': (2, 2, 8, 1)}
SETTINGS = list(
    itertools.product([(7, 7), (1, 1), (3, 5)], [1.0, 0.25, 1 / 32], [0, 1, 2], [True, False])
)


def pooled(features, rois, settings, gradient=None):
    """Result and gradient of the map by way of MMCV's own functions."""
    features = features.detach().requires_grad_()
    result = mmcv.ops.roi_align(features, rois, *settings[:3], 'avg', settings[3])
    if gradient is None:
        gradient = torch.randn_like(result)
    return result.detach(), torch.autograd.grad(result, features, gradient)[0], gradient


@pytest.mark.parametrize('rois', ROIS)
@pytest.mark.parametrize('shape', MAPS)
def test_roi_align_averages_linear_samples(source, shape, rois):
    features = torch.randn(MAPS[shape])
    regions = torch.tensor(np.array(ROIS[rois]), dtype=torch.float32)
    for settings in SETTINGS:
        result, found, gradient = pooled(features, regions, settings)
        want, parts = closed_forms.roi_align(features.double().numpy(), regions.numpy(), *settings)
        assert_close(
            f'{settings} result', result, torch.from_numpy(want), TOLERANCE[torch.float32][0]
        )
        want = closed_forms.roi_align_gradient(features.shape, parts, gradient.double().numpy())
        assert_close(
            f'{settings} gradient', found, torch.from_numpy(want), TOLERANCE[torch.float32][1]
        )


@pytest.mark.parametrize('dtype', [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_roi_align_in_other_precisions(use, dtype):
    use('torchvision')
    features = torch.randn(MAPS['map']).to(dtype)
    regions = torch.tensor(ROIS['inside']).to(dtype)
    settings = ((7, 7), 0.25, 0, True)
    result, found, gradient = pooled(features, regions, settings)
    assert result.dtype == found.dtype == dtype
    want, parts = closed_forms.roi_align(
        features.double().numpy(), regions.float().numpy(), *settings
    )
    # The places of samples are float32 in the closed form.
    loose = [max(t, TOLERANCE[torch.float32][0]) for t in TOLERANCE[dtype]]
    assert_close('result', result, torch.from_numpy(want), loose[0])
    want = closed_forms.roi_align_gradient(features.shape, parts, gradient.double().numpy())
    assert_close('gradient', found, torch.from_numpy(want), loose[1])


LAYOUTS = {
    'channels-last': lambda x: x.contiguous(memory_format=torch.channels_last),
    'every second column': lambda x: torch.stack([x, x], dim=-1).flatten(-2)[..., ::2],
    'turned': lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    'broadcast batch': lambda x: x[:1].expand(2, -1, -1, -1),
}


@pytest.mark.parametrize('layout', LAYOUTS)
def test_roi_align_reads_a_map_of_any_layout(source, layout):
    features = LAYOUTS[layout](torch.randn(2, 6, 17, 23))
    assert not features.is_contiguous()
    rois = torch.tensor(ROIS['inside'])
    strided = torch.stack([rois, rois], dim=-1)[..., 0]
    settings = ((7, 7), 0.25, 0, True)
    result, found, gradient = pooled(features, strided, settings)
    want = pooled(features.contiguous(), rois, settings, gradient)
    assert torch.equal(result, want[0])
    assert torch.equal(found, want[1])


@NEEDS_COMPILED
@pytest.mark.parametrize('name', ['roi_align_rotated', 'bezier_align'])
def test_other_compiled_poolings_read_a_map_of_any_layout(name):
    features = torch.randn(2, 6, 17, 23)
    regions = torch.tensor([[0, 30, 30, 40, 20, 0.3], [1, 50, 40, 30, 60, 1.0]])
    if name == 'bezier_align':
        regions = torch.cat([regions[:, :1], 60 * torch.rand(2, 16)], dim=1)
    operator = getattr(mmcv.ops, name)
    moved = features.contiguous(memory_format=torch.channels_last)
    assert torch.equal(
        operator(moved, regions, (7, 7), 0.25), operator(features, regions, (7, 7), 0.25)
    )


@pytest.mark.parametrize('shape', [(4, 5), (2, 3)])
def test_a_region_of_negative_size_is_refused(source, shape):
    rois = torch.tensor([[0, 1.0, 1.0, 2.0, 2.0], [0, 8.0, 8.0, 4.0, 10.0]])
    with pytest.raises(RuntimeError, match='size'):
        mmcv.ops.roi_align(torch.randn(1, 2, *shape), rois, (2, 2), 1.0, 0, 'avg', True)
    mmcv.ops.roi_align(torch.randn(1, 2, *shape), rois, (2, 2), 1.0, 0, 'avg', False)


def test_other_operators_say_who_has_them(use):
    use('torchvision')
    features, rois = torch.randn(1, 2, 4, 4), torch.tensor([[0, 0.0, 0.0, 3.0, 3.0]])
    with pytest.raises(
        RuntimeError, match=r'roi_align_forward with pool_mode="max".*--no-binary onedl-mmcv'
    ):
        mmcv.ops.roi_align(features, rois, (2, 2), 1.0, 0, 'max', True)
    with pytest.raises(
        RuntimeError, match=r'nms_match is not available.*--no-binary onedl-mmcv.*mim'
    ):
        mmcv.ops.nms_match(torch.rand(3, 5), 0.5)
    with pytest.raises(RuntimeError, match='deform_conv_forward'):
        extension.deform_conv_forward(features)
    assert not hasattr(extension, '__path__')
    assert 'torchvision' in extension.get_compiler_version()


@NEEDS_COMPILED
@pytest.mark.parametrize('kind', KINDS)
def test_both_sources_suppress_the_same_boxes(use, kind):
    boxes, scores = boxes_and_scores(kind)
    classes = torch.arange(len(boxes)) % 7
    results = []
    for source in ('torchvision', 'compiled'):
        use(source)
        found = [
            mmcv.ops.nms(boxes, scores, threshold, offset=offset)
            for threshold in np.arange(0.05, 1, 0.05)
            for offset in (0, 1)
        ]
        for method, offset in itertools.product(['naive', 'linear', 'gaussian'], (0, 1)):
            found.append(mmcv.ops.soft_nms(boxes, scores, 0.3, method=method, offset=offset))
        if len(boxes):
            for kind_of_nms in ('nms', 'soft_nms'):
                settings = dict(type=kind_of_nms, iou_threshold=0.5)
                found.append(mmcv.ops.batched_nms(boxes, scores, classes, settings))
        results.append(found)
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours[1], theirs[1])
        torch.testing.assert_close(ours[0], theirs[0], rtol=1e-6, atol=1e-7, equal_nan=True)


@NEEDS_COMPILED
@pytest.mark.parametrize('rois', ROIS)
@pytest.mark.parametrize('shape', MAPS)
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64], ids=str)
def test_both_sources_pool_the_same(use, dtype, shape, rois):
    features = torch.randn(MAPS[shape], dtype=dtype)
    regions = torch.tensor(np.array(ROIS[rois]), dtype=torch.float32).to(dtype)
    for settings in SETTINGS:
        use('torchvision')
        result, found, gradient = pooled(features, regions, settings)
        use('compiled')
        want = pooled(features, regions, settings, gradient)
        assert_close(f'{settings} result', result, want[0], TOLERANCE[dtype][0])
        assert_close(f'{settings} gradient', found, want[1], TOLERANCE[dtype][1])


@NEEDS_COMPILED
@pytest.mark.slow
@pytest.mark.parametrize(
    'name', ['mask_rcnn_recnext_m3_coco.py', 'cascade_mask_rcnn_slak_t_coco.py']
)
def test_detectors_learn_the_same_from_both_sources(use, name):
    results = []
    for source in ('torchvision', 'compiled'):
        use(source)
        torch.manual_seed(0)
        detector = build(small_config(name)).train()
        optimizer = torch.optim.SGD(detector.parameters(), lr=1e-3)
        losses = []
        for _ in range(4):
            total, _ = detector.parse_losses(detector(**batch(detector, 3), mode='loss'))
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            losses.append(total.item())
        results.append(losses)
    assert results[0] == pytest.approx(results[1], rel=1e-4)
