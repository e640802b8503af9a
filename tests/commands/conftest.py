"""A small segmentor with random weights, as a training run leaves it, and pictures."""

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from PIL import Image

from tests.tools.workbench import CONFIG

CLASSES = ('road', 'grass', 'car', 'sky')
PALETTE = [[0, 0, 200], [0, 200, 0], [200, 0, 0], [100, 100, 100]]


@pytest.fixture(autouse=True)
def scope():
    """The default scope is as it was before."""
    with DefaultScope.overwrite_default_scope('mmengine'):
        yield


@pytest.fixture(scope='session')
def trained(tmp_path_factory):
    """Folder with ``tiny.py`` and ``iter_4.pth``, the form in which MMEngine's runner saves."""
    folder = tmp_path_factory.mktemp('trained')
    text = CONFIG.format(data_root='absent').replace('num_classes=150', 'num_classes=4')
    text = text.replace('out_indices=(3,)', 'out_indices=(0,)').replace(
        'in_channels=16', 'in_channels=8'
    )
    text += f'test_dataloader["dataset"].update(metainfo=dict(classes={CLASSES!r}))\n'
    (folder / 'tiny.py').write_text(text)
    cfg = Config.fromfile(str(folder / 'tiny.py'))
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope('mmseg'):
        network = MODELS.build(cfg.model)
    for value in network.parameters():
        if value.ndim > 1:
            torch.nn.init.kaiming_normal_(value)
    # no class is likelier than another, so that labels differ from place to place
    network.eval()
    with torch.no_grad():
        logits = network.encode_decode(torch.randn(1, 3, 64, 64), [dict(img_shape=(64, 64))])
        network.decode_head.conv_seg.bias -= logits.mean((0, 2, 3))
    meta = dict(
        dataset_meta=dict(classes=CLASSES, palette=PALETTE, label_map=None),
        cfg=cfg.pretty_text,
        experiment_name='tiny_20260101_000000',
        epoch=0,
        iter=4,
    )
    content = dict(state_dict=network.state_dict(), meta=meta, optimizer=dict(state={}))
    torch.save(content, folder / 'iter_4.pth')
    (folder / 'last_checkpoint').write_text(str(folder / 'iter_4.pth'))
    return folder


@pytest.fixture
def photos(tmp_path):
    """A folder with a subfolder: four pictures of two sizes and one broken file."""
    random = np.random.RandomState(0)
    folder = tmp_path / 'photos'
    (folder / 'more').mkdir(parents=True)
    for name, size in (('a', (48, 64)), ('b', (48, 64)), ('c', (72, 48)), ('more/d', (48, 64))):
        pixels = random.randint(0, 255, (size[0] // 8, size[1] // 8, 3)).repeat(8, 0).repeat(8, 1)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f'{name}.png')
    (folder / 'broken.jpg').write_bytes(b'no picture')
    return folder


@pytest.fixture
def clip(tmp_path):
    """Twelve frames of 64 x 48, twelve per second: a square that moves over a grey ground."""
    path = str(tmp_path / 'clip.avi')
    writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*'MJPG'), 12, (64, 48))
    for index in range(12):
        frame = np.full((48, 64, 3), 120, np.uint8)
        frame[10:30, 4 * index : 4 * index + 20] = (30, 200, 240)
        writer.write(frame)
    writer.release()
    return path
