"""Broken image files are found and the size is the decoder's own.

Scenarios: formats x (whole, truncated, empty, foreign), damaged JPEG and PNG bodies, EXIF rotation
of four formats, many-band TIFF, arrays.
"""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from mmlk.data.files import image_problem, image_size

KINDS = ['JPEG', 'PNG', 'TIFF', 'BMP', 'WEBP']


def encoded(array, kind='PNG', **options):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **options)
    return buffer.getvalue()


def picture(height=60, width=90):
    noise = np.random.RandomState(0).randint(0, 60, (height, width, 3))
    return (np.add.outer(np.arange(height), np.arange(width))[..., None] + noise).astype(np.uint8)


def problems(content):
    """What is found without and with decoding."""
    return image_problem(content), image_problem(content, decode=True)


@pytest.mark.parametrize('kind', KINDS)
def test_whole_images_pass(kind):
    content = encoded(picture(), kind)
    assert problems(content) == (None, None)
    assert image_size(content) == (60, 90)


@pytest.mark.parametrize('options', [dict(progressive=True), dict(optimize=True, quality=30)])
def test_kinds_of_jpeg_pass(options):
    content = encoded(picture(), 'JPEG', **options)
    assert problems(content) == problems(content + b'\0' * 64) == (None, None)


@pytest.mark.parametrize('keep', [0.3, 0.7, 0.97])
@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'TIFF'])
def test_truncation_is_found_without_decoding(kind, keep):
    content = encoded(picture(), kind)
    found = image_problem(content[: int(keep * len(content))])
    # A TIFF's directory may stand at its end, and be lost with it.
    assert 'truncated' in found or kind == 'TIFF' and 'cannot be decoded' in found


@pytest.mark.parametrize('kind', KINDS)
def test_truncation_is_found_in_decoding(kind):
    content = encoded(picture(), kind)
    assert image_problem(content[: len(content) // 2], decode=True)


@pytest.mark.parametrize('progressive', [False, True])
def test_truncated_progressive_jpegs_are_found(progressive):
    content = encoded(picture(), 'JPEG', progressive=progressive)
    assert 'truncated' in image_problem(content[: len(content) // 2])


@pytest.mark.filterwarnings('ignore:Corrupt EXIF')
@pytest.mark.parametrize(
    'content, message',
    [
        (b'', 'is empty'),
        (b'<html>404</html>', 'cannot be decoded'),
        (b'\xff\xd8\xff\xe0', 'cannot be decoded'),
        (b'II*\0\x08\0\0\0', 'cannot be decoded'),
    ],
    ids=['empty', 'html', 'jpeg-header', 'tiff-header'],
)
def test_what_is_no_image_is_found(content, message):
    assert message in image_problem(content)


def spoil_middle(content, length, filling):
    start = len(content) // 2
    return content[:start] + filling(length) + content[start + length :]


@pytest.mark.parametrize(
    'damage',
    [
        lambda content: spoil_middle(content, 200, bytes),
        lambda content: spoil_middle(content, 64, np.random.RandomState(1).bytes),
        lambda content: content[: len(content) // 2] + content[len(content) // 2 + 300 :],
        lambda content: spoil_middle(content, 2, lambda _: b'\xff\x3c'),
    ],
    ids=['zeros', 'noise', 'hole', 'marker'],
)
def test_damaged_jpeg_bodies_are_found_in_decoding(damage, capfd):
    content = encoded(picture(), 'JPEG')
    assert 'damaged' in image_problem(damage(content), decode=True) or 'broken' in image_problem(
        damage(content), decode=True
    )
    assert capfd.readouterr().err == '', 'the decoder complains beside the report'


def test_a_marker_inside_a_jpeg_scan_is_found_without_decoding():
    content = spoil_middle(encoded(picture(), 'JPEG'), 2, lambda _: b'\xff\x3c')
    assert 'begins no valid marker (ff 3c)' in image_problem(content)


def test_restart_markers_are_no_damage():
    content = encoded(picture(), 'JPEG', restart_marker_blocks=2)
    assert b'\xff\xd0' in content and problems(content) == (None, None)


def test_a_flipped_bit_of_a_png_is_found_without_decoding():
    content = bytearray(encoded(picture()))
    content[len(content) // 2] ^= 1
    assert 'wrong checksum' in image_problem(bytes(content))


@pytest.mark.parametrize('orientation', [1, 3, 6, 8])
@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'TIFF', 'WEBP'])
def test_the_size_is_the_one_that_the_loader_decodes(kind, orientation):
    mmcv = pytest.importorskip('mmcv')
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(picture(), kind, exif=exif)
    assert image_size(content) == mmcv.imfrombytes(content).shape[:2]


@pytest.mark.parametrize('bands', [1, 2, 4, 7, 12])
@pytest.mark.parametrize('dtype', ['uint8', 'uint16', 'float32'])
def test_tiffs_of_many_bands_pass(bands, dtype):
    tifffile = pytest.importorskip('tifffile')
    array, buffer = np.ones((20, 30, bands)[: 3 if bands > 1 else 2], dtype), io.BytesIO()
    tifffile.imwrite(buffer, array, **(dict(planarconfig='contig') if bands > 1 else {}))
    content = buffer.getvalue()
    assert problems(content) == (None, None)
    assert image_size(content) == (20, 30)
    assert 'truncated' in image_problem(content[:-100])


def test_arrays_and_archives_are_left_to_their_loader():
    buffer = io.BytesIO()
    np.save(buffer, np.zeros((4, 5, 25)))
    for content in (buffer.getvalue(), b'\x1f\x8b volume', b'\x89HDF\r\n', b'PK\x03\x04'):
        assert problems(content) == (None, None) and image_size(content) is None


def large_png(side):
    """A black picture of one bit a pixel, as a PNG writer makes it."""
    rows = bytes((1 + side // 8) * side)
    chunks = [
        (b'IHDR', struct.pack('>IIBBBBB', side, side, 1, 0, 0, 0, 0)),
        (b'IDAT', zlib.compress(rows, 1)),
        (b'IEND', b''),
    ]
    packed = [
        struct.pack('>I4s', len(data), kind) + data + struct.pack('>I', zlib.crc32(kind + data))
        for kind, data in chunks
    ]
    return b'\x89PNG\r\n\x1a\n' + b''.join(packed)


def test_pictures_beyond_the_limit_of_pillow_pass(recwarn):
    """Aerial images exceed it, and OpenCV, the usual decoder, has another."""
    before = Image.MAX_IMAGE_PIXELS
    content = large_png(16_000)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(content))
    assert image_problem(content) is None and image_size(content) == (16_000, 16_000)
    assert before == Image.MAX_IMAGE_PIXELS and not recwarn.list
