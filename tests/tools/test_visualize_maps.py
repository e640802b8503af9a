"""Feature maps and Grad-CAM of trained models of all three tasks."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import mmlk
from mmlk.analysis.maps import class_activation, feature_map, last_stage, overlay
from mmlk.inference.checkpointed import network_and_classes
from tests.cases import TOLERANCE, assert_close
from tests.scripts import load_tool

ROOT = Path(__file__).parents[2]
CONFIGS = dict(
    segmentation='fpn_recnext_m0_ade20k_mini.py',
    detection='mask_rcnn_recnext_m0_coco_mini.py',
    classification='inceptionnext_a_in1k_mini.py',
)
LAST = 'backbone.stages.3'
CLASSES = ', '.join(f"'c{i}'" for i in range(8))


tool = load_tool('visualize_maps.py')


@pytest.fixture(scope='module')
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp('photo') / 'photo.png'
    pixels = np.random.default_rng(0).integers(0, 255, (90, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Config and checkpoint with random weights of each task."""
    folder, found = tmp_path_factory.mktemp('trained'), {}
    for task, name in CONFIGS.items():
        config = folder / name
        extra = f'dict(dataset=dict(metainfo=dict(classes=({CLASSES}))))'
        lines = f'test_dataloader = {extra}\n' if task == 'classification' else ''
        config.write_text(f"_base_ = 'mmlk::{name}'\n{lines}")
        torch.manual_seed(0)
        network, *_ = network_and_classes(str(config), None)
        torch.save(dict(state_dict=network.state_dict()), folder / f'{task}.pth')
        found[task] = (str(config), str(folder / f'{task}.pth'))
    return found


@pytest.fixture(scope='module')
def models(trained):
    return {task: mmlk.load_model(*files) for task, files in trained.items()}


@pytest.fixture(scope='module')
def images(models, photo):
    """What each model sees of the photo."""
    pixels = np.asarray(Image.open(photo))[..., ::-1]
    return {task: model.network_input(pixels) for task, model in models.items()}


@pytest.mark.parametrize(
    ('task', 'options', 'words'),
    [
        ('segmentation', [], 'feature map, backbone.stages.3, 3x3'),
        ('classification', ['--method', 'gradcam', '--class', 'c1'], "Grad-CAM of 'c1'"),
    ],
)
def test_maps_are_drawn(task, options, words, trained, images, photo, tmp_path, capsys):
    out = tmp_path / 'pictures' / 'map.png'
    assert tool.main([*trained[task], str(photo), '--out', str(out), *options]) == 0
    assert capsys.readouterr().out.startswith(words)
    height, width = images[task].shape[2:]
    assert Image.open(out).size == (width, height)
    assert np.asarray(Image.open(out)).std() > 10


@pytest.mark.parametrize('task', CONFIGS)
def test_feature_maps_are_what_the_backbone_returns(task, models, images):
    model, image = models[task], images[task]
    with torch.no_grad():
        maps = model.module.backbone(image)
    got = feature_map(model, image, LAST)
    assert_close('last stage', got, maps[-1][0], TOLERANCE[torch.float32][0])
    if task == 'segmentation':
        got = feature_map(model, image, 'backbone.stages.1')
        assert_close('second stage', got, maps[1][0], TOLERANCE[torch.float32][0])


def test_gradcam_of_a_segmentor_is_for_one_class(models, images):
    model, image = models['segmentation'], images['segmentation']
    one, other = (class_activation(model, image, LAST, label)[0] for label in (0, 1))
    best, label = class_activation(model, image, LAST)
    assert one.shape == other.shape == (1, 3, 3) and not torch.equal(one, other)
    with torch.no_grad():
        assert label == model.module(image, mode='tensor').mean((2, 3)).argmax()
    assert torch.equal(best, class_activation(model, image, LAST, label)[0])


def test_gradcam_against_its_closed_form(models, images, monkeypatch):
    """With a linear head on the mean of the map, the weights of its channels are those of the head."""
    model, image = models['classification'], images['classification']
    linear = nn.Linear(320, 8)
    monkeypatch.setattr(model.module, 'head', LinearHead(linear))
    values, label = class_activation(model, image, LAST, 3)
    with torch.no_grad():
        maps = model.module.backbone(image)[-1][0]
        pixels = maps.shape[1] * maps.shape[2]
        want = torch.einsum('c,chw->hw', linear.weight[3], maps).clamp(min=0) / pixels
    assert label == 3
    assert_close('cam', values[0], want, TOLERANCE[torch.float32][1])


class LinearHead(nn.Module):
    def __init__(self, linear):
        super().__init__()
        self.linear = linear

    def forward(self, maps):
        return self.linear(maps[-1].mean((2, 3)))


def test_last_stage_is_one_that_runs(models, monkeypatch):
    model = models['segmentation']
    assert last_stage(model) == LAST
    monkeypatch.setattr(model.module.backbone, 'out_indices', (0, 2))
    assert last_stage(model) == 'backbone.stages.2'


def test_overlay_is_stretched_and_has_the_size_of_the_image():
    image, values = torch.rand(1, 3, 20, 30), torch.rand(4, 5, 6)
    assert overlay(image, values).shape == (20, 30, 3)
    assert np.array_equal(overlay(image, values), overlay(image, 8 * values))


def test_refusals_are_clear(trained, models, images, photo, tmp_path, monkeypatch):
    segmentor, image = models['segmentation'], images['segmentation']
    with pytest.raises(ValueError, match='close to it: backbone.stages.3'):
        feature_map(segmentor, image, 'backbone.stage.3')
    with pytest.raises(ValueError, match='is not run by the backbone'):
        feature_map(segmentor, image, 'decode_head')
    with pytest.raises(ValueError, match='is not run by the backbone'):
        class_activation(segmentor, image, 'decode_head')
    with pytest.raises(ValueError, match='class 20 is not one of the 20'):
        class_activation(segmentor, image, LAST, 20)
    with pytest.raises(ValueError, match='need a classifier or a segmentor, not detection'):
        class_activation(models['detection'], images['detection'], LAST)
    with pytest.raises(ValueError, match="no class 'c9'; close to it: c7"):
        tool.class_index(models['classification'].classes, 'c9')
    monkeypatch.setitem(sys.modules, 'captum.attr', None)
    out = tmp_path / 'map.png'
    with pytest.raises(SystemExit, match=r'needs Captum .*mmlk\[analysis\]'):
        options = ['--out', str(out), '--method', 'gradcam']
        tool.main([*trained['segmentation'], str(photo), *options])
    assert not out.exists()
