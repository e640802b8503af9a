"""Networks of one channel in use: predicted and exported; other counts than of pictures refused."""

import numpy as np
import pytest
import torch
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import DefaultScope
from PIL import Image

import mmlk
from mmlk.cli import program
from tests.commands.test_classifiers import CLASSES, CONFIG, uneven

api = pytest.importorskip('mmpretrain')

GREY = (
    CONFIG.replace("type='mmlk.InceptionNeXt'", "type='mmlk.InceptionNeXt', in_channels={channels}")
    .replace('dict(num_classes=6)', 'dict(num_classes=6, mean={mean}, std={std}, to_rgb=False)')
    .replace("'LoadImageFromFile'", "'LoadImageFromFile', color_type='{kind}'")
)


def trained(folder, channels, kind):
    text = GREY
    for name, value in dict(
        channels=channels, kind=kind, mean=[110.0] * channels, std=[60.0] * channels
    ).items():
        text = text.replace(f'{{{name}}}', str(value))
    (folder / 'grey.py').write_text(text)
    torch.manual_seed(0)
    network = uneven(api.get_model(str(folder / 'grey.py')))
    meta = dict(dataset_meta=dict(classes=CLASSES))
    torch.save(dict(state_dict=network.state_dict(), meta=meta), folder / 'grey.pth')
    return folder / 'grey.py', folder / 'grey.pth'


@pytest.fixture
def pictures(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / 'pictures').mkdir()
    for index in range(3):
        array = rng.integers(0, 256, (80 + 7 * index, 96), dtype=np.uint8)
        Image.fromarray(array).save(tmp_path / 'pictures' / f'{index}.png')
    return tmp_path / 'pictures'


def test_scores_of_grey_pictures_are_those_of_the_loader_and_of_the_exported_file(
    tmp_path, pictures
):
    files = trained(tmp_path, 1, 'grayscale')
    model = mmlk.load_model(*files, device='cpu', fold=False)
    found = model.predict(pictures)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        pipeline = Compose(model.cfg.test_dataloader.dataset.pipeline)
        samples = [pipeline(dict(img_path=str(pictures / f'{i}.png'))) for i in range(3)]
        assert samples[0]['inputs'].shape[0] == 1
        with torch.no_grad():
            expected = [model.module.test_step(pseudo_collate([each]))[0] for each in samples]
    for mine, theirs in zip(found, expected, strict=True):
        assert np.allclose(mine.class_scores, theirs.pred_score.numpy(), atol=1e-6)
    assert np.ptp([mine.class_scores for mine in found], axis=0).max() > 0.01, 'scores differ'

    out = tmp_path / 'grey.onnx'
    words = ['export', *map(str, files), '--out', str(out), '--output', 'probabilities']
    assert program.main(words) == 0
    exported = mmlk.load_model(out)
    assert exported.description['input']['channels'] == 'GRAY'
    for mine, theirs in zip(exported.predict(pictures), found, strict=True):
        assert np.allclose(mine.class_scores, theirs.class_scores, atol=1e-5)


def test_pictures_have_one_channel_or_three(tmp_path):
    files = trained(tmp_path, 4, 'unchanged')
    with pytest.raises(ValueError, match='takes 4 channels, pictures have one or three'):
        mmlk.load_model(*files, device='cpu')
