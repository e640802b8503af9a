"""A detector in use: predicted like MMDetection, published with its own classes."""

import json

import numpy as np
import pytest
import torch
from mmengine.registry import DefaultScope
from pycocotools.coco import COCO

import mmlk
from mmlk.cli import program
from tests.detection.detectors import build, small_config

CLASSES = ('person', 'car', 'stop sign', 'sports ball', 'dining table')


@pytest.fixture(autouse=True)
def scope():
    """The default scope is as it was before."""
    with DefaultScope.overwrite_default_scope('mmengine'):
        yield


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Checkpoint of a small Mask R-CNN for five classes that is sure of what it sees."""
    config = small_config('mask_rcnn_recnext_m0_coco_mini.py')
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmdet'):
        detector = build(config)
    torch.nn.init.normal_(detector.roi_head.bbox_head.fc_cls.weight, std=0.5)
    meta = dict(dataset_meta=dict(classes=CLASSES), cfg=config.pretty_text)
    path = tmp_path_factory.mktemp('detector') / 'epoch_1.pth'
    torch.save(dict(state_dict=detector.state_dict(), meta=meta), path)
    return path


@pytest.fixture
def image(generated):
    return sorted((generated / 'val2017').glob('*.jpg'))[0]


@pytest.mark.slow
def test_boxes_and_masks_are_those_of_mmdet(trained, image):
    from mmdet.apis import inference_detector

    model = mmlk.load_model(trained, device='cpu')
    ours = model.predict(image)[0]
    theirs = model.module
    theirs.cfg = model.cfg
    with DefaultScope.overwrite_default_scope('mmdet'):
        found = inference_detector(theirs, str(image)).pred_instances.numpy()
    assert len(ours.boxes) == len(found.bboxes) > 5
    order = np.argsort(-found.scores, kind='stable')
    assert np.allclose(ours.scores, found.scores[order]) and (np.diff(ours.scores) <= 0).all()
    assert np.allclose(ours.boxes, found.bboxes[order])
    assert np.array_equal(ours.box_labels, found.labels[order])
    assert np.array_equal(ours.masks, found.masks[order])
    assert ours.masks.shape[1:] == ours.image.shape[:2]


@pytest.mark.slow
def test_command_writes_a_coco_file(trained, generated, tmp_path):
    out, source = tmp_path / 'out', str(generated / 'val2017')
    assert program.main(['predict', str(trained), source, '--out', str(out)]) == 0
    coco = COCO(str(out / 'predictions.json'))
    model = mmlk.load_model(trained, device='cpu')
    predictions = model.predict(source)
    assert [image['file_name'] for image in coco.loadImgs(coco.getImgIds())] == [
        prediction.name for prediction in predictions
    ]
    assert len(coco.anns) == sum(len(prediction.boxes) for prediction in predictions)
    first = coco.loadAnns(coco.getAnnIds(imgIds=[1]))[0]
    label = predictions[0].box_labels[0]
    assert coco.cats[first['category_id']]['name'] == CLASSES[label]
    assert np.array_equal(coco.annToMask(first), predictions[0].masks[0])
    assert len(list((out / 'pictures').glob('*.jpg'))) == len(predictions)
    assert not (out / 'labels').exists()


@pytest.mark.slow
def test_published_file_keeps_its_classes_under_mmdet(trained, image, tmp_path):
    """A head of five classes is not read as the first five of COCO's eighty."""
    from mmdet.apis import DetInferencer

    assert program.main(['publish', str(trained), '--name', 'five', '--out', str(tmp_path)]) == 0
    (file,) = tmp_path.glob('five-*.pth')
    inferencer = DetInferencer(None, weights=str(file), device='cpu', show_progress=False)
    assert tuple(inferencer.model.dataset_meta['classes']) == CLASSES
    theirs = inferencer(str(image))['predictions'][0]
    ours = mmlk.load_model(file, device='cpu').predict(image)[0]
    assert sorted(theirs['labels']) == sorted(ours.box_labels.tolist())
    assert json.dumps(ours.coco(1))
