"""Pictures of a test: one per image, whatever the folders and names, of every task."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from mmengine.structures import InstanceData, PixelData

from mmlk.engine import PicturesHook
from tests.isolation import forget_instances

META = dict(classes=('a', 'b'), palette=[(0, 0, 255), (255, 0, 0)])


def segmentation():
    structures = pytest.importorskip('mmseg.structures')
    from mmseg.visualization import SegLocalVisualizer

    visualizer = SegLocalVisualizer.get_instance('pictures', alpha=1.0)
    visualizer.dataset_meta = META
    labels = PixelData(data=torch.ones(1, 40, 60, dtype=torch.int64))
    return lambda: structures.SegDataSample(pred_sem_seg=labels)


def detection():
    structures = pytest.importorskip('mmdet.structures')
    from mmdet.visualization import DetLocalVisualizer

    DetLocalVisualizer.get_instance('pictures').dataset_meta = META
    boxes = torch.tensor([[5.0, 5, 30, 30], [10, 10, 50, 35]])
    scores, labels = torch.tensor([0.9, 0.4]), torch.tensor([0, 1])
    found = InstanceData(bboxes=boxes, scores=scores, labels=labels)
    return lambda: structures.DetDataSample(pred_instances=found)


def classification():
    structures = pytest.importorskip('mmpretrain.structures')
    from mmpretrain.visualization import UniversalVisualizer

    UniversalVisualizer.get_instance('pictures').dataset_meta = META
    scores = torch.tensor([0.25, 0.75])
    return lambda: structures.DataSample().set_pred_score(scores).set_pred_label(1)


@pytest.fixture
def images(tmp_path):
    """Equal names in two folders, and two suffixes of one name."""
    paths = [tmp_path / 'data' / name for name in ('x/1.png', 'x/1.jpg', 'y/1.png', 'y/z/1.png')]
    for index, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((40, 60, 3), 60 * index, np.uint8))
    return paths


class Data(list):
    """A data set that names its images."""

    def get_data_info(self, index):
        return dict(img_path=str(self[index]))


def drawn(make, images, folder, data=None):
    """Runs the hook over the images in batches of three; the files that it has written."""
    runner = SimpleNamespace(test_dataloader=SimpleNamespace(dataset=data or Data(images)))
    hook = PicturesHook(out_dir=str(folder), score_thr=0.5)
    hook.before_test_epoch(runner)
    for start in (0, 3):
        samples = [make() for _ in images[start : start + 3]]
        for sample, path in zip(samples, images[start:]):
            sample.set_metainfo(dict(img_path=str(path)))
        hook.after_test_iter(runner, start, outputs=samples)
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob('*.png'))


@pytest.fixture(params=[segmentation, detection, classification], ids=lambda make: make.__name__)
def make(request):
    forget_instances()
    return request.param()


def test_every_image_has_its_picture(make, images, tmp_path):
    found = drawn(make, images, tmp_path / 'out')
    assert found == ['x/1.jpg.png', 'x/1.png.png', 'y/1.png.png', 'y/z/1.png.png']


def test_data_set_that_names_no_images_loses_none(make, images, tmp_path):
    found = drawn(make, images, tmp_path / 'out', data=list(images))
    inside = tmp_path.as_posix().lstrip('/')
    assert found[0] == f'{inside}/data/x/1.jpg.png' and len(found) == 4


def test_boxes_below_the_threshold_are_not_drawn(images, tmp_path):
    forget_instances()
    drawn(detection(), images, tmp_path / 'out')
    picture = cv2.imread(str(tmp_path / 'out/x/1.png.png')).astype(int)
    assert not ((picture[..., 0] < 80) & (picture[..., 2] > 200)).any(), 'red is the unlikely box'
    assert ((picture[..., 2] < 80) & (picture[..., 0] > 200)).any(), 'blue is the likely one'


def test_image_that_cannot_be_read_is_named(images, tmp_path):
    forget_instances()
    images[0].write_bytes(b'no picture')
    with pytest.raises(ValueError, match='OpenCV cannot show .*x/1.png'):
        drawn(segmentation(), images, tmp_path / 'out')
