"""Every head on every family learns from, and is scored on, generated scenes; odd batches pass."""

import importlib
import json
import types

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner

import mmlk
from mmlk.cli import device
from mmlk.cli.config import apply_overrides
from mmlk.mmcv_ops import extension, importing
from tests.detection.detectors import batch, build, on_scenes, small_config

HEADS = ['mask_rcnn_inceptionnext_t_coco.py', 'cascade_mask_rcnn_slak_t_coco.py']
ALL = [
    'mask_rcnn_inceptionnext_t_coco.py',
    'mask_rcnn_slak_t_coco.py',
    'mask_rcnn_dcls_convnext_t_coco.py',
    'mask_rcnn_recnext_m3_coco.py',
    'mask_rcnn_recnext_a3_coco.py',
    'cascade_mask_rcnn_slak_t_coco.py',
    'cascade_mask_rcnn_dcls_convnext_t_coco.py',
]


def reads_as_if_contiguous(features, rois, output, *others, **options):
    """What MMCV's compiled RoIAlign does: it takes the memory of a map for a contiguous one."""
    features = features.as_strided(features.shape, torch.empty(features.shape).stride())
    return extension.roi_align_forward(features, rois, output, *others, **options)


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('name', ALL)
def test_compiled_roi_align_gets_the_maps_of_every_family_as_they_are(name, layout, monkeypatch):
    compiled = types.SimpleNamespace(roi_align_forward=reads_as_if_contiguous)
    importing._guard(compiled)
    roi_align = importlib.import_module('mmcv.ops.roi_align')
    detector = build(small_config(name)).eval()
    extractor = detector.roi_head.mask_roi_extractor
    extractor = extractor[0] if isinstance(extractor, torch.nn.ModuleList) else extractor
    rois = torch.tensor([[0, 3.0, 4.0, 60.0, 40.0], [1, 10.0, 10.0, 90.0, 90.0]])
    with torch.no_grad():
        maps = detector.extract_feat(torch.randn(2, 3, 96, 96).contiguous(memory_format=layout))[:4]
        assert layout is torch.contiguous_format or not maps[0].is_contiguous()
        want = extractor(maps, rois)
        monkeypatch.setattr(roi_align, 'ext_module', compiled)
        assert torch.equal(extractor(maps, rois), want)


@pytest.mark.parametrize('name', ALL)
def test_heads_see_the_regions_that_they_are_given(name):
    # RoIAlign of MMCV reads any map as if it were contiguous (mmcv#2203).
    detector = build(small_config(name)).eval()
    extractor = detector.roi_head.mask_roi_extractor
    extractor = extractor[0] if isinstance(extractor, torch.nn.ModuleList) else extractor
    rois = torch.tensor([[0, 3.0, 4.0, 60.0, 40.0], [1, 10.0, 10.0, 90.0, 90.0]])
    with torch.no_grad():
        maps = detector.extract_feat(torch.randn(2, 3, 96, 96))[:4]
        copies = [y.clone(memory_format=torch.contiguous_format) for y in maps]
        assert torch.equal(extractor(maps, rois), extractor(copies, rois))


@pytest.mark.parametrize('objects', [2, 0])
@pytest.mark.parametrize('name', HEADS)
@pytest.mark.slow
def test_every_parameter_gets_a_gradient(name, objects):
    detector = build(small_config(name)).train()
    losses = detector(**batch(detector, objects), mode='loss')
    total, _ = detector.parse_losses(losses)
    total.backward()
    assert torch.isfinite(total)
    unused = [key for key, p in detector.named_parameters() if p.requires_grad and p.grad is None]
    assert unused == [], 'distributed training would wait for these for ever'


@pytest.mark.parametrize('name', ALL)
@pytest.mark.slow
def test_an_epoch_and_its_evaluation(name, spoilt, tmp_path):
    path = spoilt / 'annotations/instances_train2017.json'
    content = json.loads(path.read_text())
    content['annotations'] = [a for a in content['annotations'] if a['image_id'] != 2]
    path.write_text(json.dumps(content))
    config = on_scenes(small_config(name), spoilt, tmp_path)
    device.adapt_to_device(config)
    runner = Runner.from_cfg(config)
    before = {key: p.detach().clone() for key, p in runner.model.named_parameters()}
    runner.train()
    assert len(runner.train_dataloader.dataset) == 7, 'the image without objects is left out'
    changed = [key for key, p in runner.model.named_parameters() if not torch.equal(p, before[key])]
    assert len(changed) > 0.9 * len(before)
    figures = runner.val_loop.run()
    for kind in ('bbox', 'segm'):
        for suffix in ('', '_50', '_75', '_s', '_m', '_l'):
            assert -1 <= figures[f'coco/{kind}_mAP{suffix}'] <= 1  # -1: no object of the size
    assert (tmp_path / 'epoch_1.pth').is_file()


def test_truth_as_prediction_scores_one(generated, tmp_path):
    from mmdet.registry import DATASETS, METRICS
    from mmengine.registry import init_default_scope
    from mmengine.structures import InstanceData

    init_default_scope('mmdet')
    config = on_scenes(small_config('mask_rcnn_inceptionnext_t_coco.py'), generated, tmp_path)
    dataset = DATASETS.build(config.val_dataloader.dataset)
    metric = METRICS.build(config.val_evaluator)
    metric.dataset_meta = dataset.metainfo
    for sample in (dataset[i]['data_samples'] for i in range(len(dataset))):
        truth = sample.gt_instances
        sample.pred_instances = InstanceData(
            bboxes=truth.bboxes.tensor,
            labels=truth.labels,
            scores=torch.ones(len(truth)),
            masks=torch.from_numpy(truth.masks.to_ndarray()).bool(),
        )
        metric.process({}, [sample.to_dict()])
    figures = metric.evaluate(len(dataset))
    assert figures['coco/bbox_mAP'] == 1.0
    assert figures['coco/segm_mAP'] > 0.9  # polygons against the bitmaps made of them


@pytest.mark.slow
def test_the_demonstration_trains_on_its_five_classes(generated, tmp_path):
    config = Config.fromfile(mmlk.config_path('mask_rcnn_recnext_m0_coco_mini.py'))
    apply_overrides(config, dict(data_root=str(generated)))
    config.train_cfg.update(max_epochs=1, val_begin=1)
    config.work_dir = str(tmp_path)
    config.visualizer.vis_backends = []
    config.model.test_cfg.rcnn.score_thr = 0.0
    runner = Runner.from_cfg(config)
    runner.train()
    assert len(runner.train_dataloader.dataset.metainfo['classes']) == 5
    assert 0 <= runner.val_loop.run()['coco/segm_mAP_50'] <= 1
