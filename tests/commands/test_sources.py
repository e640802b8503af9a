"""Where pictures come from: names, links, and files and images of unusual kinds."""

import os

import cv2
import numpy as np
import pytest
from PIL import Image

from mmlk.inference.sources import Frames, decode
from mmlk.inference.video import video_file

PIXELS = np.random.RandomState(0).randint(0, 256, (12, 20, 3)).astype(np.uint8)


def names(source):
    return [frame.name for frame in Frames(source)]


def test_no_two_files_have_one_name(tmp_path):
    for name in ('a.png', 'a.bmp', 'a.png.jpg', 'b.PNG', 'c.x.png', 'c.y.png', 'd'):
        Image.fromarray(PIXELS).save(tmp_path / name, format='png')
    assert names(tmp_path) == ['a.bmp', 'a.png', 'a.png.jpg', 'b', 'c.x', 'c.y']
    assert names(sorted(tmp_path.iterdir())) == [*names(tmp_path), 'd']


def test_linked_folders_are_searched_once(tmp_path):
    (tmp_path / 'pictures').mkdir()
    (tmp_path / 'elsewhere').mkdir()
    Image.fromarray(PIXELS).save(tmp_path / 'elsewhere/a.png')
    os.symlink(tmp_path / 'elsewhere', tmp_path / 'pictures/linked')
    os.symlink(tmp_path / 'pictures', tmp_path / 'pictures/again')
    os.symlink(tmp_path / 'absent.png', tmp_path / 'pictures/broken.png')
    found = list(Frames(tmp_path / 'pictures'))
    assert [frame.name for frame in found] == ['broken', 'linked/a']
    assert 'cannot be read (No such file' in found[0].problem and not found[1].problem


@pytest.mark.parametrize('folder', ['blank in it', '[x]', '图像', 'ü', 'a*b'])
def test_unusual_paths_are_read(folder, tmp_path):
    (tmp_path / folder).mkdir()
    file = tmp_path / folder / 'bild [1] 图.png'
    Image.fromarray(PIXELS).save(file)
    for source in (file, str(file), tmp_path / folder, [file]):
        (frame,) = Frames(source)
        assert np.array_equal(frame.image[..., ::-1], PIXELS) and frame.path == file


@pytest.mark.parametrize('orientation', range(1, 9))
def test_image_and_file_are_turned_alike(orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = tmp_path / 'a.jpg'
    Image.fromarray(PIXELS.repeat(8, 0).repeat(8, 1)).save(file, exif=exif, quality=95)
    (of_file,), (of_image,) = Frames(file), Frames(Image.open(file))
    assert of_file.image.shape == ((96, 160, 3) if orientation < 5 else (160, 96, 3))
    assert np.abs(of_file.image.astype(int) - of_image.image).max() < 12, 'more than two decoders'


@pytest.mark.parametrize('mode', ['L', 'LA', 'RGBA', 'P', '1'])
def test_image_and_file_of_other_modes_are_alike(mode, tmp_path):
    file = tmp_path / 'a.png'
    Image.fromarray(PIXELS).convert(mode).save(file)
    (of_file,), (of_image,) = Frames(file), Frames(Image.open(file))
    assert of_file.image.shape == PIXELS.shape
    assert np.array_equal(of_file.image, of_image.image)


def test_of_16_bits_the_upper_8_are_taken(tmp_path):
    deep = PIXELS[..., 0].astype(np.uint16) * 256 + 77
    for suffix in ('.png', '.tif'):
        file = tmp_path / f'a{suffix}'
        cv2.imwrite(str(file), deep)
        assert np.array_equal(decode(file.read_bytes()), PIXELS[..., :1].repeat(3, 2))
        with pytest.raises(ValueError, match="PIL image of mode 'I.*more than 8 bits"):
            Frames(Image.open(file))
    with pytest.raises(ValueError, match="mode 'F'"):
        Frames(Image.fromarray(PIXELS[..., 0].astype(np.float32)))


def test_cmyk_is_read(tmp_path):
    flat = np.full((16, 16, 3), (200, 60, 30), np.uint8)
    Image.fromarray(flat).convert('CMYK').save(tmp_path / 'a.jpg', quality=95)
    (frame,) = Frames(tmp_path / 'a.jpg')
    assert np.abs(frame.image[..., ::-1].astype(int) - flat).max() < 12


def test_camera_that_is_not_there_is_one_message(capfd):
    with pytest.raises(ValueError, match='there is no camera 77'):
        Frames('77')
    assert capfd.readouterr() == ('', '')


@pytest.mark.parametrize('size', [(64, 48), (63, 47)])
@pytest.mark.parametrize('rate', [0.001, 25, 29.97, 120.013, 211.222, 1000.5, 90000])
@pytest.mark.parametrize('count', [1, 3])
def test_videos_of_any_rate_are_written_whole(rate, size, count, tmp_path, capfd):
    with video_file(tmp_path / 'a.mp4', rate) as video:
        for level in range(count):
            video.add(Image.new('RGB', size, (60 * level, 90, 90)))
    found = cv2.VideoCapture(str(tmp_path / 'a.mp4'))
    assert found.get(cv2.CAP_PROP_FRAME_COUNT) == count
    # MPEG-4 halves the resolution of colours: the last column and row of odd sizes are left out
    assert found.get(cv2.CAP_PROP_FRAME_WIDTH) == size[0] // 2 * 2
    assert found.get(cv2.CAP_PROP_FPS) == pytest.approx(min(max(rate, 0.01), 65535), rel=1e-3)
    assert [path.name for path in tmp_path.iterdir()] == ['a.mp4']
    assert capfd.readouterr().err == ''
