"""Feature maps and Grad-CAM of trained models of all three tasks."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import mmlk
from mmlk.analysis.maps import class_activation, feature_map, overlay
from mmlk.inference.checkpointed import network_and_classes
from tests.cases import TOLERANCE, assert_close

ROOT = Path(__file__).parents[2]
CONFIGS = dict(
    segmentation='fpn_recnext_m0_ade20k_mini.py',
    detection='mask_rcnn_recnext_m0_coco_mini.py',
    classification='inceptionnext_a_in1k_mini.py',
)
CLASSES = ', '.join(f"'c{i}'" for i in range(8))


def load_tool():
    spec = importlib.util.spec_from_file_location('maps_tool', ROOT / 'tools/visualize_maps.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tool = load_tool()


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


def draw(files, photo, out, *options):
    assert tool.main([*files, str(photo), '--out', str(out), *options]) == 0
    return np.asarray(Image.open(out))


@pytest.mark.parametrize('task', CONFIGS)
def test_feature_maps_of_every_task(task, trained, photo, tmp_path, capsys):
    drawn = draw(trained[task], photo, tmp_path / 'map.png')
    assert drawn.std() > 10
    assert capsys.readouterr().out.startswith('feature map, backbone.stages.3, ')
    earlier = draw(trained[task], photo, tmp_path / 'other.png', '--layer', 'backbone.stages.0')
    assert earlier.shape == drawn.shape and not np.array_equal(earlier, drawn)


@pytest.mark.parametrize('task', ['segmentation', 'classification'])
def test_gradcam_of_a_class(task, trained, photo, tmp_path, capsys):
    classes = mmlk.load_model(*trained[task]).classes
    options = ['--method', 'gradcam', '--class']
    one, other = (
        draw(trained[task], photo, tmp_path / f'{name}.png', *options, name) for name in classes[:2]
    )
    assert not np.array_equal(one, other)
    assert f'Grad-CAM of {classes[1]!r}' in capsys.readouterr().out


def test_feature_map_is_what_the_backbone_returns(trained, photo):
    model = mmlk.load_model(*trained['segmentation'])
    image = model.network_input(np.asarray(Image.open(photo))[..., ::-1])
    with torch.no_grad():
        want = model.module.backbone(image)
    for stage in range(4):
        got = feature_map(model, image, f'backbone.stages.{stage}')
        assert_close(f'stage {stage}', got, want[stage][0], TOLERANCE[torch.float32][0])


def test_gradcam_against_its_closed_form(trained, photo):
    """With a linear head on the mean of the map, the weights of its channels are those of the head."""
    model = mmlk.load_model(*trained['classification'])
    width = 320
    linear = nn.Linear(width, 8)
    model.module.head = LinearHead(linear)
    image = model.network_input(np.asarray(Image.open(photo))[..., ::-1])
    values, label = class_activation(model, image, 3)
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


def test_overlay_is_stretched_and_has_the_size_of_the_image():
    image, values = torch.rand(1, 3, 20, 30), torch.rand(4, 5, 6)
    assert overlay(image, values).shape == (20, 30, 3)
    assert np.array_equal(overlay(image, values), overlay(image, 8 * values))


@pytest.mark.parametrize(
    ('task', 'options', 'words'),
    [
        ('segmentation', ['--layer', 'backbone.stage.3'], 'close to it: backbone.stages.3'),
        ('segmentation', ['--layer', 'decode_head'], 'is not run by the backbone'),
        ('detection', ['--method', 'gradcam'], 'need a classifier or a segmentor, not detection'),
        (
            'classification',
            ['--method', 'gradcam', '--class', 'c9'],
            "no class 'c9'; close to it: c7",
        ),
    ],
)
def test_refusals_are_clear(task, options, words, trained, photo, tmp_path):
    out = tmp_path / 'map.png'
    with pytest.raises(SystemExit) as refused:
        tool.main([*trained[task], str(photo), '--out', str(out), *options])
    assert words in str(refused.value) and not out.exists()


def test_missing_captum_is_named(trained, photo, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, 'captum.attr', None)
    with pytest.raises(SystemExit, match=r'needs Captum .*mmlk\[analysis\]'):
        tool.main([*trained['classification'], str(photo), '--out', 'x.png', '--method', 'gradcam'])
