"""Exported detectors: what ONNX Runtime finds is what MMDetection finds."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from mmengine.registry import DefaultScope

import mmlk
from mmlk.cli import program
from mmlk.export import compare
from mmlk.export.detector import DetectorGraph, _suppressed
from mmlk.inference.masks import paste
from tests.detection.detectors import build, small_config

CONFIGS = dict(
    mask='mask_rcnn_recnext_m0_coco_mini.py', cascade='cascade_mask_rcnn_dcls_convnext_t_coco.py'
)
SIZES = ((96, 128), (101, 75))


@pytest.fixture(autouse=True)
def scope():
    """The default scope is as it was before."""
    with DefaultScope.overwrite_default_scope('mmengine'):
        yield


def detector(kind):
    """A small detector that is sure of what it sees, and its config."""
    config = small_config(CONFIGS[kind])
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        network = build(config).eval()
    heads = network.roi_head.bbox_head
    for head in heads if isinstance(heads, torch.nn.ModuleList) else [heads]:
        torch.nn.init.normal_(head.fc_cls.weight, std=0.5)
        torch.nn.init.normal_(head.fc_reg.weight, std=0.05)
    for value in [*network.backbone.parameters(), *network.backbone.buffers()]:
        if value.ndim == 1 and value.is_floating_point():
            torch.nn.init.uniform_(value, 0.5, 1.5)  # folding constants must show
    return network, config


def by_mmdet(network, image):
    """Boxes, scores and labels that MMDetection's own code finds in an image (1, 3, H, W)."""
    from mmdet.structures import DetDataSample

    size = tuple(image.shape[2:])
    sample = DetDataSample(
        metainfo=dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0), pad_shape=size)
    )
    padded = torch.nn.functional.pad(image, (0, -size[1] % 32, 0, -size[0] % 32))
    with torch.no_grad(), DefaultScope.overwrite_default_scope('mmdet'):
        found = network.predict(padded, [sample])[0].pred_instances
    return found.bboxes, found.scores, found.labels, found.masks


@pytest.mark.slow
@pytest.mark.parametrize(
    'kind, size', [('mask', SIZES[0]), ('mask', SIZES[1]), ('cascade', SIZES[1])]
)
def test_graph_finds_what_mmdet_finds(kind, size):
    network, config = detector(kind)
    graph = DetectorGraph(network, config).eval()
    image = torch.randn(1, 3, *size)
    with torch.no_grad():
        boxes, scores, labels, masks = graph(image)
    expected = by_mmdet(network, image)
    assert len(boxes) == len(expected[0]) > 20
    assert torch.allclose(boxes, expected[0], atol=1e-3)
    assert torch.allclose(scores, expected[1], atol=1e-6)
    assert torch.equal(labels, expected[2])
    pasted = paste(masks, boxes, size, graph.mask_threshold)
    assert (pasted != expected[3]).float().mean() < 1e-4 and pasted.any() and not pasted.all()


@pytest.mark.slow
def test_graph_without_masks_finds_the_same_boxes():
    network, config = detector('mask')
    graph, image = DetectorGraph(network, config).eval(), torch.randn(1, 3, *SIZES[0])
    network.roi_head.mask_head = None
    without = DetectorGraph(network, config).eval()
    assert without.output_names == ['boxes', 'scores', 'labels']
    with torch.no_grad():
        pairs = zip(without(image), graph(image)[:3], strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Checkpoint of the small Mask R-CNN, whose pictures are resized by 2/3."""
    network, config = detector('mask')
    network.roi_head.test_cfg.score_thr = config.model.test_cfg.rcnn.score_thr = 0.05
    meta = dict(
        dataset_meta=dict(classes=('person', 'car', 'stop sign', 'sports ball', 'dining table')),
        cfg=config.pretty_text,
    )
    path = tmp_path_factory.mktemp('detector') / 'epoch_1.pth'
    torch.save(dict(state_dict=network.state_dict(), meta=meta), path)
    return path


@pytest.fixture(scope='module')
def exported(trained):
    """The ONNX file that the command makes of it."""
    out = trained.with_name('model.onnx')
    with DefaultScope.overwrite_default_scope('mmengine'):
        assert program.main(['export', str(trained), '--out', str(out), '--normalize']) == 0
    return out


@pytest.mark.slow
def test_file_finds_what_the_checkpoint_finds(trained, exported, generated):
    """By prediction from picture files: resizing, boxes in their pixels, labels and pasted masks."""
    original, file = (mmlk.load_model(path, device='cpu') for path in (trained, exported))
    assert file.task == 'detection' and file.classes == original.classes
    pictures = str(generated / 'val2017')
    for ours, theirs in zip(file.predict(pictures), original.predict(pictures), strict=True):
        pairs = [
            [torch.from_numpy(value) for value in (one.boxes, one.scores, one.box_labels)]
            for one in (ours, theirs)
        ]
        assert len(ours.boxes) > 5
        assert compare.detections(*pairs, exported) <= compare.TOLERANCE
        assert ours.masks.shape == theirs.masks.shape
        assert (ours.masks != theirs.masks).mean() < 1e-3


@pytest.mark.slow
def test_file_is_of_standard_operators_and_open_in_size(exported):
    model = onnx.load(exported)
    assert {entry.domain for entry in model.opset_import} == {''} and not model.functions
    kinds = {node.op_type for node in model.graph.node}
    assert {'NonMaxSuppression', 'RoiAlign'} <= kinds
    shapes = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in [*model.graph.input, *model.graph.output]
    }
    assert shapes == dict(
        image=[1, 3, 'height', 'width'],
        score_threshold=[],
        boxes=['objects', 4],
        scores=['objects'],
        labels=['objects'],
        masks=['objects', 28, 28],
    )
    session = onnxruntime.InferenceSession(exported)
    image = np.random.RandomState(0).randint(0, 256, (1, 3, 90, 70)).astype(np.float32)
    none, default, all_boxes = (
        len(session.run(['scores'], dict(image=image, **given))[0])
        for given in (
            dict(score_threshold=np.array(1.0, np.float32)),
            dict(),
            dict(score_threshold=np.array(0.0, np.float32)),
        )
    )
    assert 0 == none < default <= all_boxes


def found(count, **changes):
    """Boxes, scores, labels and masks of ``count`` objects."""
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(count, 2, generator=generator) * 100
    values = dict(
        boxes=torch.cat([corner, corner + 20], 1),
        scores=torch.rand(count, generator=generator),
        labels=torch.arange(count) % 3,
        masks=torch.rand(count, 4, 4, generator=generator),
    )
    for name, change in changes.items():
        values[name] = change(values[name].clone())
    return list(values.values())


def test_detections_are_compared_in_any_order():
    turned = [value.flip(0) for value in found(9)]
    assert compare.detections(turned, found(9), 'file') == 0
    assert compare.detections(found(0), found(0), 'file') == 0


@pytest.mark.parametrize(
    'others',
    [
        found(9, boxes=lambda x: x + 0.1),
        found(9, scores=lambda x: x * 0.999),
        found(9, labels=lambda x: x + 1),
        found(9, masks=lambda x: x * 0.999),
        [value[:8] for value in found(9)],
        found(0),
    ],
    ids=['boxes', 'scores', 'labels', 'masks', 'one less', 'none'],
)
def test_other_detections_are_refused(others):
    for pair in ((others, found(9)), (found(9), others)):
        with pytest.raises(RuntimeError, match='nothing was written'):
            compare.detections(*pair, 'file')


@pytest.mark.parametrize(
    'box', [(3.0, 4.0, 30.5, 21.25), (-4.0, -2.0, 8.0, 9.0), (35.0, 30.0, 60.0, 44.0)]
)
def test_masks_are_pasted_as_mmdet_does(box):
    from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask

    mask, box = torch.rand(1, 28, 28), torch.tensor([box])
    values, _ = _do_paste_mask(mask[:, None], box, 32, 40, skip_empty=False)
    expected = values >= 0.5
    assert (paste(mask, box, (32, 40), 0.5) != expected).sum() <= 1


def test_box_without_width_or_outside_the_picture_has_no_pixels():
    boxes = torch.tensor([[5.0, 5.0, 5.0, 9.0], [50.0, 5.0, 60.0, 9.0]])
    assert not paste(torch.ones(2, 28, 28), boxes, (32, 40), 0.5).any()


def soft(network):
    network.roi_head.test_cfg.nms = dict(type='soft_nms', iou_threshold=0.5)


def largest(network):
    network.roi_head.bbox_roi_extractor.roi_layers[0].pool_mode = 'max'


def other_neck(network):
    network.neck = type('PAFPN', (type(network.neck),), {})(
        **dict(in_channels=[8], out_channels=8, num_outs=1)
    )


def unclipped(network):
    network.rpn_head.bbox_coder.clip_border = False


def unlimited(network):
    network.roi_head.test_cfg.max_per_img = -1


def without_rpn(network):
    network.rpn_head = None


@pytest.mark.parametrize(
    'spoil, message',
    [
        (soft, "nms={'type': 'soft_nms', 'iou_threshold': 0.5}, which the exported graph"),
        (largest, "pool_mode='max'"),
        (other_neck, 'the detector has PAFPN'),
        (unclipped, 'clip_border=False'),
        (unlimited, 'a count of boxes without a limit'),
        (without_rpn, 'MaskRCNN is no detector of backbone, neck, rpn_head and roi_head'),
    ],
)
def test_part_that_the_graph_does_not_know_is_named(spoil, message):
    network, config = detector('mask')
    spoil(network)
    with pytest.raises(ValueError, match=message):
        DetectorGraph(network, config)


class Suppression(torch.nn.Module):
    """Suppression of those boxes that score above a threshold, as the graph has it."""

    def forward(self, boxes, scores, threshold):
        index = (scores > threshold).nonzero()[:, 0]
        groups = torch.zeros_like(index)
        return index[_suppressed(boxes[index], scores[index], groups, 0.5, (100, 100))]


def test_programs_of_torch_take_pictures_with_few_objects():
    """torchvision tells torch.export that suppression keeps at least two boxes."""
    boxes = torch.tensor([[0.0, 0, 9, 9], [1, 0, 9, 9], [50, 50, 99, 99], [0, 0, 100, 100]])
    scores = torch.tensor([0.5, 0.9, 0.7, 0.2])
    inputs = [(boxes, scores, torch.tensor(value)) for value in (0.0, 0.6, 0.8, 1.0)]
    exported = torch.export.export(Suppression(), inputs[0]).module()
    found = [exported(*one).tolist() for one in inputs]
    assert found == [[1, 2, 3], [1, 2], [1], []]
    assert found == [Suppression()(*one).tolist() for one in inputs]
