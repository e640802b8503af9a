"""From a model's name and a source to predictions, in Python and on disk."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

import mmlk
from mmlk.checkpoints import zoo
from mmlk.cli import program
from mmlk.inference import names, pictures
from mmlk.inference.prediction import Prediction, coco_categories
from mmlk.inference.sources import Frames
from tests.cases import assert_close
from tests.commands.conftest import CLASSES, PALETTE


@pytest.fixture(scope='module')
def model(trained):
    return mmlk.load_model(trained / 'tiny.py', trained / 'iter_4.pth', device='cpu')


def test_labels_are_those_of_mmseg(trained, photos, model):
    """MMSegmentation's own inference, from the same two files."""
    from mmseg.apis import inference_model, init_model

    theirs = init_model(str(trained / 'tiny.py'), str(trained / 'iter_4.pth'), device='cpu')
    theirs.cfg.test_pipeline = theirs.cfg.test_dataloader.dataset.pipeline
    ours = {p.name: p for p in model.predict(photos, batch_size=3, skipped=[])}
    assert sorted(ours) == ['a', 'b', 'c', 'more/d']
    for name, prediction in ours.items():
        expected = inference_model(theirs, str(photos / f'{name}.png')).pred_sem_seg.data[0]
        assert np.array_equal(prediction.labels, expected.numpy())
        picture = np.asarray(Image.open(photos / f'{name}.png'))
        assert np.array_equal(prediction.image, picture), 'not RGB'
        assert len(np.unique(prediction.labels)) > 1, 'the test would pass with constant labels'


def test_sources_of_every_kind_give_the_same(photos, model):
    path = photos / 'c.png'
    sources = [str(path), path, [path], str(photos / 'c*.png'), Image.open(path)]
    sources += [np.asarray(Image.open(path)), [np.asarray(Image.open(path))]]
    labels = [model.predict(source)[0].labels for source in sources]
    assert all(np.array_equal(labels[0], other) for other in labels[1:])


def test_classes_are_those_that_were_trained(trained, model):
    assert model.task == 'segmentation'
    assert model.classes == CLASSES and model.palette == [tuple(c) for c in PALETTE]
    from_checkpoint = mmlk.load_model(trained / 'iter_4.pth', device='cpu')
    assert from_checkpoint.classes == CLASSES


def test_broken_file_is_an_error_unless_it_is_collected(photos, model):
    with pytest.raises(ValueError, match='broken.jpg: cannot be decoded'):
        model.predict(photos)
    skipped = []
    assert len(model.predict(photos, skipped=skipped)) == 4
    assert [Path(text.split(':')[0]).name for text in skipped] == ['broken.jpg']


def test_augmentation_averages_the_augmented_predictions(trained, photos):
    """Flips and two scales, merged by hand."""
    plain = mmlk.load_model(trained / 'iter_4.pth', device='cpu')
    merged = mmlk.load_model(trained / 'iter_4.pth', device='cpu', tta=True)
    image = cv2.imread(str(photos / 'a.png'))
    total = 0
    for scale in (0.75, 1.0):
        size = (int(64 * scale + 0.5), int(48 * scale + 0.5))
        for flip in (False, True):
            view = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
            view = view[:, ::-1] if flip else view
            tensor = torch.from_numpy(np.ascontiguousarray(view[..., ::-1])).permute(2, 0, 1)
            x = (tensor[None].float() - 127.5) / 64
            with torch.no_grad():
                logits = plain.module.encode_decode(x, [dict(img_shape=x.shape[2:])])
            logits = logits.flip(3) if flip else logits
            logits = torch.nn.functional.interpolate(logits, (48, 64), mode='bilinear')
            total = total + logits.softmax(1)
    found = merged.predict(photos / 'a.png')[0].labels
    assert (found == total.argmax(1)[0].numpy()).mean() > 0.999


def test_video_gives_its_frames(tmp_path, model):
    path = str(tmp_path / 'clip.avi')
    writer = cv2.VideoWriter(path, cv2.VideoWriter_fourcc(*'MJPG'), 5, (64, 48))
    assert writer.isOpened()
    for level in (0, 100, 200):
        writer.write(np.full((48, 64, 3), level, np.uint8))
    writer.release()
    frames = Frames(path)
    assert frames.total == 3
    found = list(model.stream(frames))
    assert [p.name for p in found] == ['clip_000000', 'clip_000001', 'clip_000002']
    assert [round(p.image.mean() / 100) for p in found] == [0, 1, 2]


def test_command_writes_the_predicted_video(trained, clip, tmp_path):
    out = tmp_path / 'out'
    words = ['predict', str(trained / 'iter_4.pth'), clip, '--out', str(out), '--device', 'cpu']
    assert program.main(words) == 0
    video = cv2.VideoCapture(str(out / 'clip.mp4'))
    assert video.get(cv2.CAP_PROP_FPS) == 12 and video.get(cv2.CAP_PROP_FRAME_COUNT) == 12
    model = mmlk.load_model(trained / 'iter_4.pth', device='cpu')
    for prediction in model.stream(clip):
        read, frame = video.read()
        wanted = np.asarray(prediction.picture(legend=False)).astype(int)
        assert read and frame.shape == (48, 64, 3)
        assert np.abs(frame[..., ::-1].astype(int) - wanted).mean() < 12, 'more than compression'
    assert len(list((out / 'pictures').iterdir())) == 12
    assert not [path for path in out.iterdir() if path.name.startswith('.')]


def test_a_camera_ends_with_the_program_and_keeps_its_results(trained, clip, tmp_path, monkeypatch):
    capture = cv2.VideoCapture

    def opened(source):
        return Camera(capture(clip)) if source == 0 else capture(source)

    monkeypatch.setattr(cv2, 'VideoCapture', opened)
    out = tmp_path / 'out'
    words = ['predict', str(trained / 'iter_4.pth'), '0', '--out', str(out), '--device', 'cpu']
    assert program.main(words) == 0
    assert len(list((out / 'labels').glob('camera0_*.png'))) == 4  # the fifth waits for a sixth
    monkeypatch.undo()
    assert cv2.VideoCapture(str(out / 'camera0.mp4')).get(cv2.CAP_PROP_FRAME_COUNT) == 4
    assert (out / 'classes.json').exists()


class Camera:
    """A camera that gives five pictures, until Ctrl-C is pressed."""

    def __init__(self, video):
        self.video, self.left = video, 5

    def read(self):
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        return self.video.read()

    def isOpened(self):
        return True

    def get(self, _):
        return 0.0

    def release(self):
        self.video.release()


def test_video_that_cannot_be_opened_is_one_message(tmp_path):
    (tmp_path / 'clip.mp4').write_bytes(b'no video')
    with pytest.raises(ValueError, match='cannot open the video .*clip.mp4.*codec'):
        Frames(tmp_path / 'clip.mp4')


def test_names_of_pictures_do_not_collide(photos):
    (photos / 'a.bmp').write_bytes((photos / 'a.png').read_bytes())
    names_found = [frame.name for frame in Frames(photos)]
    assert names_found == ['a.bmp', 'a.png', 'b', 'broken', 'c', 'more/d']


@pytest.mark.parametrize(
    'source, message',
    [
        ('absent/*.png', 'no pattern that any file fits'),
        ([], 'empty sequence'),
        (np.zeros((4, 4), np.uint8), 'uint8 .H, W, 3. in RGB order'),
        (np.zeros((4, 4, 3)), 'not float64'),
    ],
)
def test_source_that_is_none_is_refused(source, message):
    with pytest.raises(ValueError, match=message):
        Frames(source)


def test_command_writes_pictures_labels_and_classes(trained, photos, tmp_path, capsys):
    out = tmp_path / 'out'
    words = ['predict', str(trained / 'iter_4.pth'), str(photos), '--out', str(out)]
    assert program.main([*words, '--batch-size', '2', '--device', 'cpu']) == 3
    printed = capsys.readouterr()
    assert printed.out.endswith(f'4 picture(s): {out}\n')
    assert 'broken.jpg: cannot be decoded' in printed.err
    found = sorted(p.relative_to(out).as_posix() for p in out.rglob('*') if p.is_file())
    stems = ['a', 'b', 'c', 'more/d']
    expected = [f'labels/{s}.png' for s in stems] + [f'pictures/{s}.jpg' for s in stems]
    assert found == ['classes.json', *expected]
    assert json.loads((out / 'classes.json').read_text()) == dict(zip('0123', CLASSES))
    model = mmlk.load_model(trained / 'iter_4.pth', device='cpu')
    expected = model.predict(photos / 'c.png')[0]
    assert np.array_equal(np.asarray(Image.open(out / 'labels/c.png')), expected.labels)
    with Image.open(out / 'pictures/c.jpg') as picture:
        assert picture.width >= 48 and picture.height > 64, 'no legend below the picture'


def test_command_ends_well_without_broken_files(trained, photos, tmp_path):
    words = ['predict', str(trained / 'iter_4.pth'), str(photos / '[ab].png'), '--device', 'cpu']
    assert program.main([*words, '--out', str(tmp_path / 'out'), '--no-pictures']) == 0
    assert not (tmp_path / 'out/pictures').exists()


def test_options_change_the_config(trained, photos):
    options = {'model.test_cfg': dict(mode='slide', crop_size=(32, 32), stride=(32, 32))}
    whole, windows = (
        mmlk.load_model(trained / 'iter_4.pth', device='cpu', cfg_options=each)
        for each in (None, options)
    )
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        first = windows.module.predict(x)[0].seg_logits.data[:, :32, :32]
        corner = whole.module.predict(x[..., :32, :32])[0].seg_logits.data
    assert_close('first window', first, corner, 1e-5)


@pytest.mark.parametrize('shape', [(0, 5, 3), (5, 0, 3), (5, 5), (5, 5, 4)])
def test_arrays_that_are_no_picture_are_refused(shape, trained):
    model = mmlk.load_model(trained / 'iter_4.pth', device='cpu')
    with pytest.raises(ValueError, match=r'must be uint8 \(H, W, 3\) in RGB order, not uint8'):
        model.predict(np.zeros(shape, np.uint8))


def test_pointer_of_a_run_is_followed(trained):
    assert names.resolve(str(trained / 'last_checkpoint'), None) == (
        None,
        str(trained / 'iter_4.pth'),
    )


@pytest.mark.parametrize(
    'words, message',
    [
        (['upernet_slak_tt_ade20k', 'a.png'], 'closest names: upernet_slak_t_ade20k'),
        (['upernet_recnext_m3_ade20k', 'a.png'], 'no weights are published'),
        (['CHECKPOINT', 'absent.png'], "'.*absent.png' is no file, no folder, and no pattern"),
        (['CHECKPOINT', 'a.png', '--out', 'a.png'], 'a.png cannot be written to: .* is no folder'),
        (
            ['CHECKPOINT', 'a.png', '--cfg-options', 'model.test_cfg.mod=slide'],
            "there is no 'mod' here; did you mean mode",
        ),
        (['x.onnx', 'a.png', '--cfg-options', 'a=1'], 'x.onnx is .*takes no config options'),
        (['CHECKPOINT', 'a.png', '--checkpoint', 'x.pth'], 'two checkpoints'),
        (['CHECKPOINT', 'broken.jpg'], 'no picture of .*broken.jpg could be read'),
        (
            ['fpn_recnext_m3_ade20k', 'a.png', '--checkpoint', 'CHECKPOINT'],
            'looks like InceptionNeXt',
        ),
        (['absent.onnx', 'a.png'], 'there is no file'),
        (['a.png', 'a.png'], r"'a.png' is neither a config \(.py\) nor a checkpoint"),
    ],
)
def test_bad_input_is_one_message_and_no_output(words, message, trained, photos, monkeypatch):
    monkeypatch.chdir(photos)
    before = sorted(photos.rglob('*'))
    words = [word.replace('CHECKPOINT', str(trained / 'iter_4.pth')) for word in words]
    with pytest.raises(SystemExit, match=f'^mmlk predict: error: (.|\n)*({message})'):
        program.main(['predict', *words])
    assert sorted(photos.rglob('*')) == before


def test_every_published_dense_model_has_its_config():
    published = [e for e in zoo.ENTRIES.values() if e.task in ('ade20k', 'coco')]
    assert len(names.dense_weights()) == len(published)
    from mmengine.config import Config

    for entry in published:
        cfg = Config.fromfile(mmlk.config_path(names.dense_config(entry)))
        family = {'slak': 'SLaK', 'dcls_convnext': 'DCLSConvNeXt', 'recnext': 'RecNeXt'}
        assert cfg.model.backbone.type == f'mmlk.{family[entry.family]}'
        assert cfg.model.backbone.arch == entry.arch
        assert ('ADE' in cfg.dataset_type) == (entry.task == 'ade20k')


def test_name_of_a_published_model_stands_for_both_files():
    config, weights = names.resolve('fpn_recnext_m3_ade20k', None)
    assert Path(config).name == 'fpn_recnext_m3_ade20k.py'
    assert weights == 'mmlk://recnext_m3_ade20k'
    for name in ('mmlk://recnext_m3_ade20k', 'recnext_m3_ade20k', 'mmlk::fpn_recnext_m3_ade20k.py'):
        assert names.resolve(name, None) == (config, weights)
    assert names.resolve('fpn_recnext_m3_ade20k', 'mine.pth') == (config, 'mine.pth')


def objects(masks=True):
    """Two boxes on a grey picture."""
    mask = np.zeros((2, 20, 30), bool)
    mask[0, 2:6, 3:9] = True
    mask[1, 10:18, 12:28] = True
    return Prediction(
        'x',
        np.full((20, 30, 3), 128, np.uint8),
        ('person', 'car', 'stop sign'),
        [(255, 0, 0), (0, 255, 0), (0, 0, 255)],
        boxes=np.array([[12.0, 10, 28, 18], [3, 2, 9, 6]], np.float32),
        scores=np.array([0.9, 0.2], np.float32),
        box_labels=np.array([2, 0]),
        masks=mask[::-1] if masks else None,
    )


def test_coco_annotations_read_back_with_pycocotools(tmp_path, capsys):
    from pycocotools.coco import COCO

    prediction = objects()
    content = dict(
        images=[dict(id=7, file_name='x', height=20, width=30)],
        categories=coco_categories(prediction.classes),
        annotations=prediction.coco(7, 40),
    )
    path = tmp_path / 'predictions.json'
    path.write_text(json.dumps(content))
    coco = COCO(str(path))
    first, second = coco.loadAnns([40, 41])
    assert coco.cats[first['category_id']]['name'] == 'stop sign' and first['category_id'] == 13
    assert first['bbox'] == [12, 10, 16, 8] and first['area'] == 128
    assert np.array_equal(coco.annToMask(first), prediction.masks[0])
    assert np.array_equal(coco.annToMask(second), prediction.masks[1])
    assert coco_categories(('person', 'unicorn')) == [
        dict(id=1, name='person'),
        dict(id=2, name='unicorn'),
    ]


def test_boxes_below_the_threshold_are_left_out():
    kept = objects().above(0.5)
    assert kept.box_labels.tolist() == [2] and kept.masks.shape == (1, 20, 30)


def test_colours_of_a_picture_are_mixed_as_asked():
    image = np.full((2, 2, 3), 100, np.uint8)
    painted = pictures.paint_labels(image, np.array([[0, 1], [1, 0]]), PALETTE, opacity=0.25)
    assert np.asarray(painted)[0, 0].tolist() == [75, 75, 125]
    assert np.asarray(painted)[0, 1].tolist() == [75, 125, 75]


def test_objects_are_painted_where_their_masks_are():
    pixels = np.asarray(objects().picture(opacity=1.0))
    assert pixels[14, 20].tolist() == [0, 0, 255]
    assert pixels[19, 1].tolist() == [128, 128, 128]
    assert len(pixels) > 20, 'no legend'


def test_label_image_holds_the_indices_and_the_colours():
    labels = np.array([[0, 1], [2, 3]])
    image = Prediction('x', np.zeros((2, 2, 3), np.uint8), CLASSES, PALETTE, labels).label_image()
    assert np.asarray(image).tolist() == labels.tolist()
    assert np.asarray(image.convert('RGB')).reshape(-1, 3).tolist() == PALETTE
    with pytest.raises(ValueError, match='detector'):
        objects().label_image()
