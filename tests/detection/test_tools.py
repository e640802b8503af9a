"""Detectors through the tools: what is wrong with the data is said before anything starts."""

import json

import pytest
from mmengine.config import Config

import mmlk
from mmlk.cli.evaluation import draw_predictions
from mmlk.data.layout import DataError, check_datasets

ANNOTATIONS = 'annotations/instances_train2017.json'


def edited(change):
    """Spoils the training file by a function of its content."""
    def spoil(root):
        content = json.loads((root / ANNOTATIONS).read_text())
        change(content)
        (root / ANNOTATIONS).write_text(json.dumps(content))
    return spoil


def truncate(root):
    content = (root / ANNOTATIONS).read_bytes()
    (root / ANNOTATIONS).write_bytes(content[:len(content) // 2])


@pytest.mark.parametrize(('spoil', 'message'), [
    (truncate, 'probably truncated'),
    (edited(lambda content: content.update(annotations=[])), 'no annotation'),
    (edited(lambda content: content['annotations'][0].update(category_id=12)), 'category id 12'),
    (edited(lambda content: content['annotations'][0].update(
        segmentation=[[900, 10, 920, 10, 920, 30]])), 'lies outside its image'),
], ids=['truncated', 'empty', 'category', 'mask'])
def test_broken_annotations_stop_a_recipe_before_it_starts(spoil, message, spoilt, monkeypatch):
    monkeypatch.setenv('MMLK_COCO_ROOT', str(spoilt))
    config = Config.fromfile(mmlk.config_path('mask_rcnn_recnext_m3_coco.py'))
    assert check_datasets(config)[0].startswith('train_dataloader: 8 images')
    spoil(spoilt)
    with pytest.raises(DataError, match=f'(?s)train_dataloader: .*{message}.*MMLK_COCO_ROOT'):
        check_datasets(config)


def test_pictures_go_to_the_folder_that_is_named(tmp_path):
    config = Config.fromfile(mmlk.config_path('mask_rcnn_recnext_m0_coco_mini.py'))
    draw_predictions(config, show=False, show_dir=str(tmp_path), wait_time=0)
    assert config.default_hooks.visualization.draw
    assert config.default_hooks.visualization.test_out_dir == str(tmp_path)
